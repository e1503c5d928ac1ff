"""`glc compress --optimize-latent`, with LPIPS' weights from a folder."""

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Glc, image, tree
from tests.jobs.stand_ins import read_tar, write_tar
from tests.short_runs import stand_in_weights

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_weights(tmp_path_factory.mktemp("lpips"))


def test_optimized_files_differ_and_decompress(glc: Glc, weights: Path) -> None:
    image("in/a.png", 64, 96)
    image("in/b.png", 40, 50, seed=1)
    assert glc("compress", "in", "-o", "plain").exit_code == 0
    optimized = glc("compress", "in", "-o", "optimized", "--optimize-latent", 3, "--lpips-weights", weights)
    assert optimized.exit_code == 0, optimized.output
    assert tree("optimized") == tree("plain") == ["a.glc", "b.glc"]
    # So few steps need not improve every image.
    files = [[Path(folder, name).read_bytes() for name in tree(folder)] for folder in ("optimized", "plain")]
    assert files[0] != files[1]
    assert glc("decompress", "optimized", "-o", "decoded").exit_code == 0
    assert tree("decoded") == ["a.png", "b.png"]


def test_missing_lpips_weights_write_nothing(glc: Glc) -> None:
    image("a.png")
    result = glc("compress", "a.png", "--optimize-latent", 3)
    assert result.exit_code == 2
    assert "squeezenet1_1" in result.output
    assert "--lpips-weights" in result.output
    assert "Traceback" not in result.output
    assert os.listdir() == ["a.png"]
    nowhere = glc("compress", "a.png", "--optimize-latent", 3, "--lpips-weights", "nowhere")
    assert nowhere.exit_code == 2
    assert "nowhere" in nowhere.output


def test_shards_contain_the_same_files(glc: Glc, weights: Path) -> None:
    write_tar(Path("in.tar"), [("a.png", image("in/a.png", 64, 96).read_bytes())])
    options = ("--optimize-latent", 2, "--lpips-weights", weights, "-o", "out")
    assert glc("compress", "in", *options).exit_code == 0
    result = glc("compress", "in.tar", "--shards", *options)
    assert result.exit_code == 0, result.output
    assert read_tar(Path("out/in.tar"))["a.glc"] == Path("out/a.glc").read_bytes()
    # Other steps are other settings: a folder that was begun with these ones refuses them.
    other = glc("compress", "in.tar", "--shards", *options[2:], "--optimize-latent", 1)
    assert "optimize_latent" in other.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--optimize-latent", 3, "--encoder", "denoise"), "cannot be combined with --encoder"),
        (("--lpips-weights", "."), "needs --optimize-latent STEPS"),
        (("--optimize-latent", -1), "--optimize-latent"),
        (("--effort", 3), "--effort: renamed in 0.2; use --optimize-latent"),
    ],
)
def test_invalid_options_are_refused(glc: Glc, arguments: tuple[object, ...], reason: str) -> None:
    image("a.png")
    for shards in ((), ("--shards", "-o", "out")):
        result = glc("compress", "a.png", *arguments, *shards)
        assert result.exit_code == 2
        assert reason in result.output
        assert os.listdir() == ["a.png"]

"""`--shards`: output shards and messages."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from tests.cli.conftest import Glc, image
from tests.jobs.stand_ins import read_tar, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of two images with a text each."""
    for shard in range(2):
        members = []
        for i in range(2):
            data = image(tmp_path / f"{shard}-{i}.png", seed=10 * shard + i).read_bytes()
            members += [(f"{shard}-{i}.png", data), (f"{shard}-{i}.txt", b"an image")]
        write_tar(tmp_path / "in" / f"in-{shard}.tar", members)
    return tmp_path / "in"


def test_round_trip_of_shards(glc: Glc, shards: Path) -> None:
    model = ("--model", "small", "--device", "cpu")
    result = glc("compress", "--shards", "in/in-{0..1}.tar", "-o", "out", "--keep", "--quality", 30, *model)
    assert result.exit_code == 0, result.output
    assert "4 of 4 samples in 2 shards" in result.stdout
    assert "bpp" in result.stdout
    coded = read_tar(Path("out/in-1.tar"))
    assert list(coded) == ["1-0.glc", "1-0.txt", "1-1.glc", "1-1.txt"]
    glc("compress", "1-1.png", "--quality", 30, *model)
    assert coded["1-1.glc"] == Path("1-1.glc").read_bytes()

    result = glc("decompress", "--shards", "out", "-o", "back")
    assert result.exit_code == 0, result.output
    decoded = read_tar(Path("back/in-1.tar"))
    assert list(decoded) == ["1-0.png", "1-1.png"]
    glc("decompress", "1-1.glc", "-o", "1-1.decoded.png", *model)
    assert np.array_equal(Image.open("1-1.decoded.png"), Image.open(io.BytesIO(decoded["1-1.png"])))
    totals = [json.loads(Path(f"{name}/manifest.json").read_text())["totals"] for name in ("out", "back")]
    assert totals[0]["bpp"] == totals[1]["bpp"] == 8 * totals[0]["coded_bytes"] / (4 * 40 * 50)


def test_failures_are_counted_and_exit_with_1(glc: Glc, shards: Path) -> None:
    write_tar(shards / "in-2.tar", [("bad.png", b"no image")])
    result = glc("compress", "--shards", "in/in-{0..3}.tar", "-o", "out", "--model", "small")
    assert result.exit_code == 1
    assert "1 samples failed, 1 shards truncated or corrupt; see" in result.stderr
    lines = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    assert [(line["shard"], line["key"]) for line in lines] == [("in-2.tar", "bad"), ("in-3.tar", None)]
    assert "not an image" in lines[0]["error"]


def test_failed_samples_are_retried_and_parts_share_the_shards(
    glc: Glc, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(shards / "in-2.tar", [("2-0.png", b"no image"), ("2-1.a.png", Path("0-0.png").read_bytes())])
    job = ("compress", "--shards", "in", "-o", "out", "--model", "small", "--image-member", "png")
    for part, left in (("1/2", 2), ("0/2", 0)):
        result = glc(*job, "--part", part)
        if left:
            assert result.exit_code == 0
            assert f"out: {left} of 3 shards are left to the other parts" in result.stdout
            assert not Path("out/manifest.json").exists()
    assert result.exit_code == 1
    lines = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["2-0", "2-1"]
    assert "no file to process (2-1.a.png)" in lines[1]["error"]
    before = Path("out/in-0.tar").stat().st_mtime_ns
    monkeypatch.setattr("glc.data.images.read_rgb", lambda *_, **__: Image.new("RGB", (40, 50)))
    result = glc(*job, "--retry-failures")
    assert result.exit_code == 1
    assert "5 of 6 samples in 3 shards" in result.stdout
    assert Path("out/in-0.tar").stat().st_mtime_ns == before


def test_usage_errors_leave_no_output(glc: Glc, shards: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = glc("compress", *words, "--model", "small")
        assert result.exit_code == 2, result.output
        assert sorted(tmp_path.rglob("*")) == before
        return result.stderr

    assert "-o OUT" in refused("--shards", "in")
    assert "--keep: requires --shards" in refused("0-0.png", "--keep")
    assert "--processes: requires --shards" in refused("0-0.png", "--processes", 2)
    assert "--ray-gpus" in refused("0-0.png", "--ray-gpus", 1)
    assert "require --engine ray" in refused("--shards", "in", "-o", "out", "--ray-gpus", 1)
    assert "limit them with --ray-cpus" in refused(
        "--shards", "in", "-o", "out", "--engine", "ray", "--processes", 2
    )
    assert "'3/3' is not I/N" in refused("--shards", "in", "-o", "out", "--part", "3/3")
    assert "none of the 3 shards" in refused("--shards", "on-{0..2}.tar", "-o", "out")
    assert "not a number" in refused("--shards", "in", "-o", "out", "--quality", "nan")
    assert "overwritten" in refused("--shards", "in", "-o", "in")
    # A file where the folder would be stands for a place that cannot be written to.
    assert "0-0.png" in refused("--shards", "in", "-o", "0-0.png")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unknown_name_is_reported_before_any_output(glc: Glc, shards: Path, processes: int) -> None:
    words = ("compress", "--shards", "in", "-o", "out", "--processes", processes)
    for option, message in (("--model", "there is no model 'typo'"), ("--encoder", "no encoder 'typo'")):
        result = glc(*words, option, "typo")
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert not Path("out").exists()


def test_a_job_with_other_weights_is_refused(
    glc: Glc, shards: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = read_weights(models / "small.safetensors")
    for file in models.glob("*.safetensors"):
        Path(file.name).symlink_to(file)
    monkeypatch.setenv("GLC_MODELS", ".")

    def write(factor: float) -> None:
        state = {name: factor * tensor for name, tensor in weights.model.encoder.state_dict().items()}
        part = Path("ours.encoder.safetensors")
        save_variant(part, "encoder", state, weights.description["encoder"], weights.fingerprint)

    job = ("compress", "--shards", "in", "-o", "out", "--model")
    write(1.0)
    # One that cannot be loaded does not block the folder.
    Path("bad.safetensors").write_bytes(b"no weights")
    result = glc(*job, "bad.safetensors")
    assert result.exit_code == 2
    assert "bad.safetensors" in result.stderr
    assert glc(*job, "small", "--encoder", "ours").exit_code == 0
    write(1.1)
    for words, message in (
        (("small", "--encoder", "ours"), "weights.encoder was"),
        (("other",), "weights.model was"),
    ):
        result = glc(*job, *words)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "--force" in result.stderr


def test_standard_input_is_read_up_to_a_limit(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    source = image("photo.png")
    data = glc("compress", source, "-o", "-", "--model", "small").stdout_bytes
    monkeypatch.setattr("glc.data.images.MAX_PIXELS", 1000)
    for words, stdin, message in (
        (("decompress", "-"), data[:14] + bytes(2 << 20), "longer than the maximum"),
        (("decompress", "-", "--max-pixels", 100), data, "limit of 100"),
        (("compress", "-"), bytes((1 << 20) + 8001), "longer than the limit of 1,056,576 bytes"),
    ):
        result = glc(*words, stdin=stdin)
        assert result.exit_code == 2
        assert message in result.stderr

"""docs/extending.md: its code is the example package's, which trains, exports, compresses and evaluates."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.programs import GLC, start
from tests.short_runs import QUIET, checkpoint, figures, write_images

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "extending.md").read_text("utf-8")
PACKAGE = ROOT / "examples" / "glc_example"
BLOCKS = re.findall(r"(?:^`(examples/[^`]+)`\n\n)?^```(\w+)\n(.*?)^```$", DOCUMENT, re.S | re.M)
"""File, where the block is one, language and text of each block."""


def test_the_code_of_the_document_is_the_package() -> None:
    blocks = {file: text for file, _, text in BLOCKS if file}
    files = [path for path in PACKAGE.rglob("*.*") if path.suffix in (".py", ".yaml", ".toml")]
    assert blocks == {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for path in files
        if path.name != "__init__.py"
    }


def test_the_other_yaml_of_the_document_is_the_experiment_s() -> None:
    experiment = (PACKAGE / "src/glc_example/conf/experiment/example.yaml").read_text("utf-8")
    lines = {line.split(" #")[0].strip() for line in experiment.splitlines()}
    shown = [text for file, language, text in BLOCKS if language == "yaml" and not file]
    assert len(shown) == 4
    for block in shown:
        assert {line.split(" #")[0].strip() for line in block.splitlines()} <= lines


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed; the checkout is not where programs run."""
    site = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
    ]
    subprocess.run([*command, "--target", str(site), str(PACKAGE)], check=True, capture_output=True)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def done(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the document's commands were run."""
    folder = tmp_path_factory.mktemp("extending")
    write_images(folder / "photos", count=2, side=128)
    (folder / "photos" / "0.png").rename(folder / "photo.png")
    (commands,) = [text for _, language, text in BLOCKS if language == "sh"]
    assert commands.startswith("pip install examples/glc_example\n")
    for line in commands.replace("\\\n", " ").splitlines()[1:]:
        program, *words = shlex.split(line)
        assert program == "glc"
        ran = start([*GLC, *words], environment=installed, folder=folder)
        assert ran.returncode == 0, f"{line}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    return folder


@pytest.mark.timeout(600)
def test_own_parts_train_through_the_stages(done: Path) -> None:
    runs = done / "runs" / "example"
    weights = {stage: checkpoint(runs / stage)["state_dict"] for stage in ("pretrain", "vqvae", "joint")}
    assert "autoencoder.encoder.patches.weight" in weights["pretrain"]
    assert "model.encoder.patches.weight" in weights["joint"]
    assert "model.coder.hyper.synthesis.0.weight" in weights["joint"]
    for stage, suffix in (("pretrain", ""), ("vqvae", ""), ("transform", "/0"), ("joint", "/0")):
        row = figures(runs / stage)[-1]
        assert row[f"val/edge{suffix}"] > 0
        if stage != "transform":
            assert row[f"val/worst_psnr{suffix}"] <= row[f"val/psnr{suffix}"]
    states = checkpoint(runs / "joint")["optimizer_states"]
    assert [len(state["param_groups"]) for state in states] == [3, 2]
    assert "momentum" in states[0]["param_groups"][0]


@pytest.mark.timeout(600)
def test_own_parts_compress_decompress_and_are_measured(done: Path) -> None:
    with Image.open(done / "decoded.png") as decoded:
        assert decoded.size == (128, 128)
    assert 20 < (done / "photo.glc").stat().st_size < 5000
    (summary,) = (done / "results").rglob("summary.json")
    assert "worst_psnr" in json.dumps(json.loads(summary.read_text()))

"""The installed wheel trains, exports, compresses, evaluates and reports, outside of the checkout."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from PIL import Image

import glc
from glc.codec.entropy import integer_kernels
from glc.codec.native import Native
from glc.codec.prebuilt import LEVELS, libraries
from tests.codec.fixed_model import fixed_image
from tests.short_runs import QUIET, ROOT, STAGES, arguments, settings

# Several commands in one process, to import torch once; the first failure ends it.
SEVERAL = """
import json, sys
from glc.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words, prog_name="glc")
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"glc {' '.join(words)}: {ended.code}")
"""

BEFORE = """
pack --samples train data/samples/train --size 96 --workers 1 --quiet
pack --samples test data/samples/test --size 96 --workers 1 --quiet
"""
AFTER = """
export runs/mine/joint mine.safetensors
compress set/photo.png -o photo.glc --model mine.safetensors --device cpu
decompress photo.glc -o back.png --model mine.safetensors --device cpu
eval codec=mine.safetensors testset.path=set qualities=[0,100] metrics=none device=cpu out=results
report results -o report.html --originals set
"""


@dataclass
class Installed:
    """An environment with the wheel and its dependencies, without this checkout."""

    prefix: Path
    folder: Path
    """Working directory of commands; it has a package `src` that must not be imported."""

    def run(self, *words: object, program: str = "glc") -> str:
        """Run a program of the environment; return its output."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.prefix / "bin" / program), *map(str, words)],
            cwd=self.folder,
            env={**environment, **QUIET, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_all(self, commands: Sequence[Sequence[str]]) -> str:
        """Run `glc` with each of several lists of words; return their output."""
        return self.run("-c", SEVERAL, json.dumps(commands), program="python")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(built)


def install(wheel: Path, prefix: Path) -> None:
    interpreter = ["--python", str(prefix / "bin" / "python")]
    command = [sys.executable, "-m", "pip", *interpreter, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-compile", str(wheel)], check=True)


def required(names: Sequence[str]) -> set[str]:
    """Return the distributions that requirements bring here, with those that they require."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name in found or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        found.add(requirement.name)
        waiting += metadata.requires(requirement.name) or []
    return found


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with the wheel and what it requires without extras, by links."""
    prefix = tmp_path_factory.mktemp("core")
    venv.create(prefix)
    (site,) = (prefix / "lib").glob("python*/site-packages")
    for name in required(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]):
        distribution = metadata.distribution(name)
        for top in {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():  # namespace packages such as `google` are shared
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    install(wheel, prefix)
    return Installed(prefix, tmp_path_factory.mktemp("core_work"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    prefix = tmp_path_factory.mktemp("environment")
    venv.create(prefix)
    (site,) = (prefix / "lib").glob("python*/site-packages")
    # Adds the folder but does not process its .pth files, so that this checkout is not importable.
    (site / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    install(wheel, prefix)
    folder = tmp_path_factory.mktemp("mine")
    (folder / "src").mkdir()
    for name in ("__init__", "train", "evaluate"):
        (folder / "src" / f"{name}.py").write_text("raise RuntimeError('this is not the src of glc')\n")
    return Installed(prefix, folder)


def test_the_wheel_contains_the_package_and_the_configuration(wheel: Path, tmp_path: Path) -> None:
    expected = {f"glc/{path.relative_to(ROOT / 'src/glc')}" for path in (ROOT / "src/glc").rglob("*")}
    expected |= {f"glc/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    expected.add("hydra_plugins/glc_optuna_sweeper.py")
    folders = {str(Path(name).parent) for name in expected}
    expected = {name for name in expected - folders if "__pycache__" not in name}
    expected = {name for name in expected if not (ROOT / "src" / name).is_dir()}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    (archive_file,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(archive_file) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"conf/train.yaml", "conf/evaluate.yaml", "src/glc/cli/experiments.py", "pyproject.toml"} <= names


def test_training_codec_and_evaluation_run_from_the_wheel(installed: Installed) -> None:
    folder = installed.folder
    location = installed.run("-c", "import glc; print(glc.__file__)", program="python")
    assert Path(location.strip()).is_relative_to(installed.prefix)
    assert installed.run("--version").strip() == f"glc, version {glc.__version__}"
    (folder / "set").mkdir()
    Image.fromarray(fixed_image(80, 96)).save(folder / "set" / "photo.png")
    training_runs = []
    for stage in STAGES:
        values = {**settings(Path(), Path("runs"), "mine", stage, steps=2), "data": "samples"}
        del values["data.train"], values["data.val"]
        training_runs.append(["train", *arguments(values)])
    before, after = ([line.split() for line in text.strip().splitlines()] for text in (BEFORE, AFTER))
    installed.run_all([*before, *training_runs, *after])
    for stage in STAGES:
        saved = torch.load(folder / f"runs/mine/{stage}/checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == 2
    codec = glc.load(folder / "mine.safetensors", "cpu")
    data = (folder / "photo.glc").read_bytes()
    with Image.open(folder / "back.png") as image:
        assert image.size == (96, 80)
        assert image.tobytes() == codec.decompress(data).tobytes()
    summary = json.loads((folder / "results" / "summary.json").read_text())
    assert summary["codec"]["name"] == "mine"
    for point, quality in zip(summary["points"], (0, 100), strict=True):
        with Image.open(folder / "set" / "photo.png") as original:
            expected = codec.compress(original, quality)
        assert point["bpp"] == pytest.approx(8 * len(expected) / (80 * 96), rel=1e-6)
    page = (folder / "report.html").read_text()
    assert "<html" in page
    assert "mine" in page
    assert sorted(path.name for path in folder.iterdir()) == [
        *("back.png", "data", "mine.safetensors", "photo.glc", "report.html", "results", "runs", "set", "src")
    ]


def test_core_compresses_and_decompresses_without_torch(core: Installed) -> None:
    (site,) = (core.prefix / "lib").glob("python*/site-packages")
    size = sum(
        os.path.getsize(Path(folder, name))
        for folder, _, names in os.walk(site, followlinks=True)
        for name in names
        if "__pycache__" not in folder
    )
    assert size < 250e6
    modules = core.run(
        "-c",
        "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'onnx')])",
        program="python",
    )
    assert modules.strip() == "[None, None]"
    Image.fromarray(fixed_image(80, 96)).save(core.folder / "photo.png")
    core.run_all([["compress", "photo.png"], ["decompress", "photo.glc", "-o", "back.png"], ["models"]])
    codec = glc.load(device="cpu", backend="torch", precision="float32")
    data = (core.folder / "photo.glc").read_bytes()
    assert data == codec.compress(core.folder / "photo.png")
    with Image.open(core.folder / "back.png") as image:
        error = np.square(np.asarray(image, float) - np.asarray(codec.decompress(data), float)).mean()
    assert error < 255**2 / 1e5  # 50 dB


@pytest.mark.skipif(
    platform.machine() not in LEVELS or shutil.which("cc") is None, reason="no C compiler, or no kernels"
)
def test_wheel_with_compiled_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLC_BUILD_KERNELS", "1")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert "-py3-none-" in built
    assert not built.endswith("-any.whl")
    with zipfile.ZipFile(built) as archive:
        found = {Path(name).name for name in archive.namelist() if name.endswith(".so")}
        archive.extract("glc/codec/entropy/integer_kernels.v3.so", tmp_path)
    vectors = {
        f"{name}.{n}.so" for name in ("integer_kernels", "winograd", "fused") for n in ("v3", "v4", "vnni")
    }
    assert found == vectors | {"integer_kernels.amx.so", "amx.amx.so"}
    source = tmp_path / "glc" / "codec" / "entropy" / "integer_kernels.c"
    native = Native(source, integer_kernels.NATIVE._declare, integer_kernels.NATIVE._self_test)
    monkeypatch.setenv("CC", "no-such-compiler-here")
    if not list(libraries(source)):
        pytest.skip("this processor runs no library of a wheel")
    assert native.library() is not None

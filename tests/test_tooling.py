"""What `make` offers and what it installs."""

import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from hydra import compose, initialize_config_dir
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import glc
from glc.cli.evaluate import find_entry

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {"core": [], "dev": ["train", "eval", "dev"], "app": ["app"]}


@pytest.mark.parametrize("lock", EXTRAS)
def test_locks_pin_what_the_project_asks_for(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text("utf-8")
    pinned: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.M):
        pinned.setdefault(canonicalize_name(name), []).append(version)
    wanted = PROJECT["dependencies"] + [
        line for extra in EXTRAS[lock] for line in PROJECT["optional-dependencies"][extra]
    ]
    for line in wanted:
        requirement = Requirement(line)
        versions = pinned.get(canonicalize_name(requirement.name))
        assert versions, f"{lock}.txt lacks {line}: run `make lock`"
        assert all(version in requirement.specifier for version in versions), f"{line}: run `make lock`"


@pytest.mark.parametrize("lock", [*EXTRAS, "uv"])
def test_locks_have_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text("utf-8")
    assert not re.findall(r"\w+://\S+|^--?\S*(?:index|find-links)\S*", text, re.M)
    entries = re.findall(r"^\S+==(?:.|\n(?=\s))*", text, re.M)
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel of this checkout is unpacked into, as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


def test_a_wheel_has_all_that_glc_eval_runs(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glc, "__file__", str(installed / "glc" / "__init__.py"))
    entry = find_entry()
    assert entry == installed / "glc" / "entry"
    for name in ("src/__init__.py", "glc/launch/evaluate.py", "glc/launch/overrides.py"):
        assert (entry / name).read_bytes() == (ROOT / name).read_bytes()
    # All that these import of src came along.
    imported = set(
        re.findall(r"^from src\.(\w+) import", (entry / "glc/launch/evaluate.py").read_text(), re.M)
    )
    assert imported == {"overrides"}
    for group in ("testset", "metrics"):
        assert {p.name for p in (entry / "conf" / group).iterdir()} == {
            p.name for p in (ROOT / "conf" / group).iterdir()
        }
    with initialize_config_dir(str(entry / "conf"), version_base="1.3"):
        cfg = compose("evaluate", ["codec=jpeg", "out=x", "testset=kodak", "metrics=full_64"])
    assert cfg.testset.name == "kodak"
    assert {"lpips", "fid_64"} <= set(cfg.metrics.metrics)


def test_a_wheel_has_the_files_that_are_no_modules(installed: Path) -> None:
    inside = {path.relative_to(ROOT / "src") for path in (ROOT / "src/glc").rglob("*") if path.is_file()}
    inside = {path for path in inside if "__pycache__" not in path.parts}
    assert not {str(path) for path in inside if not (installed / path).is_file()}
    assert not [path for path in installed.iterdir() if not path.name.startswith("glc")]


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    shown = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert {"help", "setup", "demo", "test", "lint"} <= targets
    assert set(re.findall(r"^  ([a-z-]+) +\S+", shown, re.M)) == targets


def test_set_up_refuses_an_interpreter_that_does_not_serve(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    done = subprocess.run(
        ["sh", script],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "setup: PYTHON=no-such-python is not a working Python 3.11 to 3.13\n"
    assert not (tmp_path / ".venv").exists()

"""Targets of `make` and locked requirements."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import glc

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {"core": [], "dev": ["train", "eval", "dev"], "app": ["app"]}


@pytest.mark.parametrize("lock", EXTRAS)
def test_locks_pin_the_declared_requirements(lock: str) -> None:
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
def test_locks_have_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text("utf-8")
    assert not re.findall(r"\w+://\S+|^--?\S*(?:index|find-links)\S*", text, re.M)
    entries = re.findall(r"^\S+==(?:.|\n(?=\s))*", text, re.M)
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)


def tracked_text() -> dict[str, str]:
    """Return the content of each tracked text file, by its path in the checkout."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    contents = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    return {name: data.decode() for name, data in contents.items() if b"\0" not in data}


def test_no_file_tells_to_install_the_unrelated_package_glc() -> None:
    """On the package index `glc` is an unrelated project; ours is `glc-codec`."""
    assert PROJECT["name"] == "glc-codec"
    install = r"(?:pip|uv|pipx|tool) (?:install|add|run)(?: +-\S+)* +['\"]?glc(?![-\w/.])"
    wrong = re.compile(rf"{install}|(?<![-\w.])glc\[[a-z]")
    assert wrong.search("pip install glc")
    assert wrong.search("pip install -U 'glc[app]'")
    assert wrong.search("(`glc[sweep]`)")
    assert not wrong.search("pip install 'glc-codec[app]'  # then glc serve")
    assert not wrong.search("pip install -e '.[train]'")
    own = Path(__file__).relative_to(ROOT).as_posix()
    found = {name: wrong.search(text) for name, text in tracked_text().items() if name != own}
    assert not {name: match[0] for name, match in found.items() if match}


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    shown = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert {"help", "setup", "demo", "test", "lint"} <= targets
    assert set(re.findall(r"^  ([a-z-]+) +\S+", shown, re.M)) == targets


def test_setup_refuses_an_interpreter_that_does_not_work(tmp_path: Path) -> None:
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


def test_versions_agree() -> None:
    assert PROJECT["version"] == glc.__version__
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert heading is not None
    assert glc.__version__.removesuffix(".dev0") == heading[1]

"""Finished files are renamed into place by glc.io.atomic alone."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "glc"

ALLOWED = {
    "io/atomic.py": "the one place",
    "training/checkpoints.py": "keeps the checkpoint before the last, and puts damaged ones aside",
}
"""Modules that rename files, and why each does."""

_RENAMES = {"os.replace", "os.rename", "os.renames", "shutil.move"}


def renames(source: str) -> list[int]:
    """Return the lines that rename a file: `os.replace`, or the one argument of `Path.replace`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = ast.unparse(node.func)
        a_path = node.func.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords
        if name in _RENAMES or (a_path and not name.startswith("dataclasses.")):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("os.replace(a, b)", [1]),
        ("\nPath(a).replace(b)\npath.rename(b)", [2, 3]),
        ("shutil.move(a, b)", [1]),
        ("'a'.replace('b', 'c')\nreplace(label, kind=1)\ndataclasses.replace(label)", []),
        ("moment.replace(tzinfo=None)", []),
    ],
)
def test_the_check_recognises_renames(source: str, lines: list[int]) -> None:
    assert renames(source) == lines


def test_one_module_writes_files() -> None:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        if lines := renames(path.read_text("utf-8")):
            found[path.relative_to(SOURCE).as_posix()] = lines
    assert not {name: lines for name, lines in found.items() if name not in ALLOWED}
    assert not ALLOWED.keys() - found.keys(), "an exception that nothing needs any more"

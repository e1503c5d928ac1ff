"""Install the web app's requirements into build/app: gradio needs an older Pillow than .venv has.

    python scripts/app_packages.py [FOLDER]

Installs the entries of requirements/app.txt, with their hashes, that this environment lacks or has in another
version, except torch and the packages compiled against it. To use the folder, put it first on PYTHONPATH, as
`make serve` does.
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = re.compile(r"torch|torchvision|torchmetrics|triton|nvidia-|cuda-|numpy|scipy|setuptools")
"""Compiled against each other: all must come from one environment."""
STAMP = ".requirements"


def missing(text: str) -> list[str]:
    """Return the entries of a lock file, with markers and hashes, that this environment does not satisfy."""
    wanted = []
    for entry in re.findall(r"^[a-z0-9][^\n]*(?:\n[ \t]+--hash[^\n]*)*", text, re.M):
        name, pinned = re.match(r"([\w.-]+)==([^\s;\\]+)", entry).groups()
        if SHARED.match(name):
            continue
        try:
            if version(name) == pinned:
                continue
        except PackageNotFoundError:
            pass
        wanted.append(entry)
    return wanted


def main() -> int:
    """Run from the command line; return the exit status."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "app"
    lock = (ROOT / "requirements" / "app.txt").read_text("utf-8")
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text("utf-8") == lock:
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        entries = Path(temporary) / "app.txt"
        entries.write_text("\n".join(missing(lock)) + "\n", "utf-8")
        options = ["--quiet", "--no-deps", "--require-hashes", "--upgrade", "--target", str(folder)]
        command = [sys.executable, "-m", "pip", "install", *options, "-r", str(entries)]
        done = subprocess.run(command, check=False)
    if done.returncode == 0:
        stamp.write_text(lock, "utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())

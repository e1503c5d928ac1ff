"""Models by name: those that come with glc, and those in the user's folder."""

import os
from pathlib import Path

from glc import pretrained
from glc.codec.errors import WeightsError

DEFAULT_MODEL = "small"
FOLDER_VARIABLE = "GLC_MODELS"
"""Environment variable: a folder of further weights files, found by their names."""

_SUFFIX = ".safetensors"


def catalog() -> dict[str, Path]:
    """Return the weights file of each model that is known by name; the user's come before those of glc."""
    folders = [Path(path) for path in pretrained.__path__]
    if os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(os.environ[FOLDER_VARIABLE]))
    return {file.stem: file for folder in folders for file in sorted(folder.glob(f"*{_SUFFIX}"))}


def find(model: str | Path) -> Path:
    """Return the weights file of a model's name, or the file itself.

    Raises:
        WeightsError: when it is neither.
    """
    path = Path(model)
    if path.is_file():
        return path
    known = catalog()
    if str(model) in known:
        return known[str(model)]
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    names = f"known are {', '.join(known)}" if known else "no model comes with this version of glc"
    raise WeightsError(
        f"there is no model {str(model)!r} ({names}); give a weights file: "
        "`glc export` makes one from a training run"
    )

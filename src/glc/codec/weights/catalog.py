"""Weights files by name: codecs and their variants, bundled with glc or in the user's folder."""

import os
from pathlib import Path

from glc import pretrained
from glc.errors import WeightsError

DEFAULT_MODEL = "small"
FOLDER_VARIABLE = "GLC_MODELS"
"""Environment variable: a folder of additional weights files, found by name."""

_SUFFIX = ".safetensors"
_KINDS = ("encoder", "decoder", "training")
"""`NAME.encoder.safetensors` is not a codec's file: see `glc.codec.weights.file`."""

_TRAINED_BY = {
    "model": "a training run",
    "encoder": "a run of stage=restoration",
    "decoder": "a run of stage=stylization",
}


def catalog(kind: str = "model") -> dict[str, Path]:
    """Return the weights files of a kind by name; the user's take precedence over the bundled ones."""
    folders = [Path(path) for path in pretrained.__path__]
    if os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(os.environ[FOLDER_VARIABLE]))
    found = {}
    for file in (file for folder in folders for file in sorted(folder.glob(f"*{_SUFFIX}"))):
        name, _, ending = file.stem.rpartition(".")
        of = ending if name and ending in _KINDS else "model"
        if of == kind:
            found[file.stem if kind == "model" else name] = file
    return dict(sorted(found.items()))


def find(name: str | Path, kind: str = "model") -> Path:
    """Return the path of a weights file.

    Args:
        name: a file, or a name in `catalog(kind)`.
        kind: `model` (a codec), `encoder` or `decoder`.

    Raises:
        WeightsError: it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    files = catalog(kind)
    if str(name) in files:
        return files[str(name)]
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    names = f"available: {', '.join(files)}" if files else "none is available by name"
    raise WeightsError(
        f"there is no {kind} {str(name)!r} ({names}); give a weights file: `glc export` writes one from "
        f"{_TRAINED_BY[kind]}"
    )

"""Models by name, and the encoders and decoders made for them: those that come with glc and the user's."""

import os
from pathlib import Path

from glc import pretrained
from glc.errors import WeightsError

DEFAULT_MODEL = "small"
FOLDER_VARIABLE = "GLC_MODELS"
"""Environment variable: a folder of further weights files, found by their names."""

_SUFFIX = ".safetensors"
_NO_CODECS = ("encoder", "decoder", "training")
"""`NAME.encoder.safetensors` replaces a codec's encoder: see `glc.codec.weights.variants`, and `glc.codec.weights.training`."""


def catalog() -> dict[str, Path]:
    """Return the weights file of each known model by its name; the user's come before those of glc."""
    files = {file.stem: file for file in _files() if Path(file.stem).suffix[1:] not in _NO_CODECS}
    return dict(sorted(files.items()))


def parts(kind: str) -> dict[str, Path]:
    """Return the file of each encoder, or of each decoder, that is known by name."""
    ending = f".{kind}{_SUFFIX}"
    return {file.name.removesuffix(ending): file for file in _files() if file.name.endswith(ending)}


def _files() -> list[Path]:
    folders = [Path(path) for path in pretrained.__path__]
    if os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(os.environ[FOLDER_VARIABLE]))
    return [file for folder in folders for file in sorted(folder.glob(f"*{_SUFFIX}"))]


def find_part(name: str | Path, kind: str) -> Path:
    """Return the file of a known encoder's or decoder's name, or the file itself.

    Raises:
        WeightsError: when it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = parts(kind)
    if str(name) in known:
        return known[str(name)]
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    names = f"known are {', '.join(known)}" if known else f"no {kind} is known by name"
    raise WeightsError(
        f"there is no {kind} {str(name)!r} ({names}); give a weights file: `glc export` makes one from a run "
        f"of stage={'restoration' if kind == 'encoder' else 'stylization'}"
    )


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

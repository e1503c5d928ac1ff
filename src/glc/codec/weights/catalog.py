"""Weights files by name: bundled with glc, in the user's folder or on the hub; codecs and their variants."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from glc import hub, pretrained
from glc.codec.weights.labels import CodecLabel, Kind, VariantLabel, kind_of, read_header, read_label
from glc.errors import WeightsError

if TYPE_CHECKING:
    from glc.codec.base import BaseCodec


DEFAULT_MODEL = "small"
FOLDER_VARIABLE = "GLC_MODELS"
"""Environment variable: a folder of additional weights files, found by name."""

_SUFFIX = ".safetensors"
_KINDS = ("encoder", "decoder", "training")
"""`NAME.encoder.safetensors` is not a codec's file: see `glc.codec.weights.labels`."""

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
        name: a file, a name in `catalog(kind)`, or `hf://OWNER/NAME[@REVISION]` (see `glc.hub`).
        kind: `model` (a codec), `encoder` or `decoder`.

    Raises:
        WeightsError: it is none of these, or cannot be downloaded.
    """
    if hub.is_on_hub(name):
        return hub.download(str(name))
    path = Path(name)
    if path.is_file():
        return path
    files = catalog(kind)
    if str(name) in files:
        return files[str(name)]
    if path.is_dir():
        raise WeightsError(
            f"{path}: a folder, not a weights file; `glc export` writes one from {_TRAINED_BY[kind]}"
        )
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such weights file")
    names = f"available: {', '.join(files)}" if files else "none is available by name"
    raise WeightsError(
        f"there is no {kind} {str(name)!r} ({names}); give a weights file: `glc export` writes one from "
        f"{_TRAINED_BY[kind]}"
    )


def find_by_fingerprint(fingerprint: bytes) -> Path | None:
    """Return the first codec of the catalogue whose fingerprint starts with these bytes, or None.

    Reads the headers of the files only.
    """
    for file in catalog().values():
        with suppress(OSError, WeightsError):  # opening the file by name reports the error
            header = read_header(file)
            if kind_of(header) is CodecLabel and header.metadata.get("fingerprint", "").startswith(
                fingerprint.hex()
            ):
                return file
    return None


def encoders(codec: "BaseCodec") -> dict[str, Path]:
    """Return the files of the encoder variants of a codec, by name."""
    return made_for(codec.weights.fingerprint, "encoder")


def decoders(codec: "BaseCodec") -> dict[str, Path]:
    """Return the files of the decoder variants of a codec, by name."""
    return made_for(codec.weights.fingerprint, "decoder")


def made_for(fingerprint: str, kind: Kind) -> dict[str, Path]:
    """Return the files of the variants of a kind for the codec with a fingerprint, by name."""
    found = {}
    for name, file in catalog(kind).items():
        try:
            label = read_label(file)
        except WeightsError:
            continue  # opening the file by name reports the error
        if isinstance(label, VariantLabel) and (label.kind, label.fingerprint) == (kind, fingerprint):
            found[name] = file
    return found

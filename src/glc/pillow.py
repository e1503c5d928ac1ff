"""Pillow plugin for `.glc` files.

```
import glc.pillow
glc.pillow.register()

image = Image.open("photo.glc")             # reads the header: image.size, no codec
image.load()                                # decodes; the first time, loads the codec
image.save("other.glc", quality=50)         # or target_bpp=0.03, target_size=2000
```

Pillow has no entry points for plugins: a program calls `register`. Processes that are forked inherit it. In a
process that is started afresh (`spawn`, `forkserver`) call it again, for example with
`DataLoader(..., worker_init_fn=glc.pillow.register)`.

Errors are Pillow's: `UnidentifiedImageError` for other files, files that end within the header and newer
formats, `DecompressionBombWarning` and `DecompressionBombError` for large images, `OSError` for truncated and
corrupt files and for files of another model.
"""

import io
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from glc.codec.bitstream import (
    HEADER,
    MAGIC,
    MAX_SIDE,
    RATE_ONE,
    Header,
    longest_file,
    parse_header,
    unpack,
)
from glc.codec.weights.catalog import DEFAULT_MODEL, find, find_by_fingerprint
from glc.errors import BitstreamError, MemoryLimitError, NewerVersionError, WeightsError, WrongWeightsError

if TYPE_CHECKING:
    from glc.codec.base import BaseCodec

FORMAT = "GLC"
"""`image.format`, and the argument `format` of `Image.save`."""
EXTENSION = ".glc"
MIME = "image/x-glc"


@dataclass(frozen=True)
class _Settings:
    model: str | Path | None = None
    device: str = "cpu"
    backend: str = "auto"


_settings = _Settings()
_codecs: dict[tuple[Path, _Settings], "BaseCodec"] = {}
_lock = threading.Lock()
_inherited: list[object] = []


def register(
    worker: int | None = None,
    /,
    *,
    model: str | Path | None = None,
    device: str = "cpu",
    backend: str = "auto",
) -> None:
    """Let Pillow open and save `.glc` files. A second call changes the settings.

    Nothing is loaded before the first image is decoded or saved. All threads of a process share the codec; a
    forked process loads its own.

    Args:
        worker: ignored: the number with which `torch.utils.data.DataLoader` calls a `worker_init_fn`.
        model: as `glc.load`. None: files are decoded by the known model (`glc models`) that wrote them, and
            saved with the default model.
        device: as `glc.load`. A GPU cannot be used in forked processes.
        backend: as `glc.load`.

    Raises:
        WeightsError: the model does not exist.
        ValueError: the backend is unknown.
        ModuleNotFoundError: the backend needs PyTorch, which is not installed.
    """
    global _settings
    from glc.codec.load import choose_backend

    choose_backend(backend)
    if model is not None and not str(model).startswith("hf:"):  # downloaded when it is needed
        find(model)
    _settings = _Settings(model, str(device), backend)
    Image.register_open(FORMAT, GlcImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME)


class GlcImageFile(ImageFile.ImageFile):
    """An image that is decoded on first use.

    `info` has the file's `rate_index` and the `fingerprint` of its weights, eight hexadecimal digits.
    """

    format = FORMAT
    format_description = "Generative Latent Coding"
    _decoded = False

    def _open(self) -> None:
        assert self.fp is not None
        try:
            header = parse_header(self.fp.read(HEADER))
        except BitstreamError as error:
            raise SyntaxError(str(error)) from error
        self._size = (header.width, header.height)
        self._mode = "RGB"
        self.info["rate_index"] = header.rate_index / RATE_ONE
        self.info["fingerprint"] = header.fingerprint.hex()

    def load(self) -> Any:
        """Decode the image.

        Raises:
            OSError: the file is truncated or corrupt, or its model is not the registered one or not known.
            MemoryError: the image needs more memory than there is.
            WeightsError: the model cannot be loaded.
        """
        file = getattr(self, "fp", None)
        if not self._decoded and file is not None:
            pixels = _decode(self._read()).tobytes()
            if self._exclusive_fp:
                file.close()
            # As Pillow does for WebP, which is decoded as a whole: the base class loads raw pixels.
            self.fp = io.BytesIO(pixels)
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, (self.mode, 0, 1))]
            self._decoded = True
        return super().load()

    def verify(self) -> None:
        """Verify the checksum, without decoding.

        Raises:
            OSError: the file is truncated or corrupt.
        """
        if not self._decoded and self.fp is not None:
            _unpack(self._read())
        super().verify()

    def _read(self) -> bytes:
        assert self.fp is not None
        self.fp.seek(0)
        start = self.fp.read(HEADER)
        # No more than the image can need: what follows may be endless.
        return start + self.fp.read(longest_file(start, self.width * self.height) + 1 - len(start))


def _accept(prefix: bytes) -> bool | str:
    if not prefix.startswith(MAGIC):
        return False
    try:
        parse_header(prefix)
    except NewerVersionError as error:
        return str(error)  # Pillow warns
    except BitstreamError:
        pass  # `GlcImageFile` says why
    return True


def _unpack(data: bytes) -> Header:
    """Return the header of a file with a valid checksum; the size was checked by `Image.open`."""
    try:
        return unpack(data, MAX_SIDE**2)[0]
    except BitstreamError as error:
        raise OSError(f"image file is truncated or corrupt: {_short(error)}") from error


def _decode(data: bytes) -> Image.Image:
    header = _unpack(data)
    pixels = header.width * header.height
    try:
        return _codec(_model_for(header)).decompress(data, max_pixels=pixels)
    except WrongWeightsError as error:
        hint = "register the model that wrote it: glc.pillow.register(model=FILE)"
        raise OSError(f"cannot decode a .glc file: {error}; {hint}") from error
    except BitstreamError as error:
        raise OSError(f"image file is truncated or corrupt: {_short(error)}") from error
    except MemoryLimitError as error:
        raise MemoryError(str(error)) from error


def _short(error: BitstreamError) -> str:
    return str(error).removeprefix("corrupt or truncated file: ").removeprefix("corrupt file: ")


def _model_for(header: Header) -> str | Path:
    if _settings.model is not None:
        return _settings.model
    found = find_by_fingerprint(header.fingerprint)
    if found is None:
        raise WrongWeightsError(
            f"it was written with weights {header.fingerprint.hex()}, which match no known model"
        )
    return found


def _codec(model: str | Path) -> "BaseCodec":
    from glc.codec.load import load

    settings, path = _settings, find(model)
    with _lock:
        if (path, settings) not in _codecs:
            try:
                _codecs[path, settings] = load(path, settings.device, backend=settings.backend)
            except WeightsError as error:
                # Pillow and its users treat SyntaxError and OSError as faults of the image; this is none.
                raise type(error)(f"glc.pillow: {error}") from error
        return _codecs[path, settings]


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """Write an image: options `quality` (50), `target_bpp` and `target_size`, as `BaseCodec.compress`."""
    options = {name: image.encoderinfo.get(name) for name in ("quality", "target_bpp", "target_size")}
    quality = options.pop("quality")
    if quality is not None and any(value is not None for value in options.values()):
        raise ValueError("give quality, target_bpp or target_size; not two of them")
    codec = _codec(_settings.model or DEFAULT_MODEL)
    file.write(codec.compress(image, 50 if quality is None else quality, **options))


def _forget() -> None:
    """In a forked process: the threads of a codec's runtime and the lock's holder do not exist."""
    global _codecs, _lock
    _inherited.append(_codecs)  # destroying them would wait for their threads
    _codecs, _lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""The `.glc` file: its header and its checksum.

All numbers are little-endian and unsigned; docs/bitstream.md explains every field and the payload.

```
offset  bytes  field
     0      3  magic         "GLC"
     3      1  version       1
     4      4  fingerprint   first bytes of the weights' fingerprint
     8      2  width  - 1    of the image in pixels
    10      2  height - 1
    12      2  rate index    rate index times 4096, from 0 to (K - 1) * 4096; K: number of rate points
    14      n  payload       bytes of the entropy coder, up to the checksum; does not end in a zero byte
14 + n      4  checksum      CRC-32 of everything before it
```

Overhead: 18 bytes. The payload's length is not stored: it follows from the file's size.
"""

import struct
import zlib
from dataclasses import dataclass

from glc.errors import CorruptFileError, NewerVersionError, NotGlcError, SizeLimitError, TruncatedError

MAGIC = b"GLC"
VERSION = 1
"""Incremented with every change of the format."""
RATE_ONE = 4096
"""Units of the rate index in a file: it is stored times 4096."""
MAX_RATES = 16
"""Most rate points of a model; the field of the rate index can hold no more."""
MAX_SIDE = 1 << 16
"""Longest side that the header can hold."""
DEFAULT_LIMIT = 16384 * 16384
"""Pixels that a reader accepts by default."""
FINGERPRINT_BYTES = 4

_HEADER = struct.Struct("<3sB4sHHH")
HEADER = _HEADER.size
"""Bytes before the payload."""
_CHECKSUM = struct.Struct("<I")
OVERHEAD = _HEADER.size + _CHECKSUM.size
"""Bytes of header and checksum."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields of a file's header."""

    fingerprint: bytes
    """The first `FINGERPRINT_BYTES` bytes of the fingerprint of the weights that wrote the file."""
    width: int
    """Pixels, 1 to 65536."""
    height: int
    """Pixels, 1 to 65536."""
    rate_index: int
    """Rate index in units of 1 / `RATE_ONE`."""


def pack(header: Header, payload: bytes) -> bytes:
    """Return the file for a header and the entropy coder's bytes.

    Raises:
        SizeLimitError: a side is longer than `MAX_SIDE`.
    """
    if not (1 <= header.width <= MAX_SIDE and 1 <= header.height <= MAX_SIDE):
        raise SizeLimitError(
            f"the image has {header.width} x {header.height} pixels; "
            f"a .glc file holds at most {MAX_SIDE} x {MAX_SIDE}"
        )
    if len(header.fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(header.fingerprint)}")
    start = _HEADER.pack(
        MAGIC, VERSION, header.fingerprint, header.width - 1, header.height - 1, header.rate_index
    )
    return start + payload + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(start)))


def parse_header(start: bytes) -> Header:
    """Return the header in a file's first `HEADER` bytes. The checksum at the file's end is not checked.

    Raises:
        NotGlcError, NewerVersionError, CorruptFileError, TruncatedError: as `unpack`.
    """
    _check_start(start, HEADER)
    _, _, fingerprint, width, height, rate_index = _HEADER.unpack_from(start)
    return Header(fingerprint=fingerprint, width=width + 1, height=height + 1, rate_index=rate_index)


def longest_file(start: bytes, max_pixels: int = DEFAULT_LIMIT) -> int:
    """Return an upper bound of a file's size in bytes, from its first `HEADER` bytes.

    A reader of a stream can stop there: a longer input is not a `.glc` file. Sizes above `max_pixels` count
    as `max_pixels`, because a corrupt size is detected only by the checksum at the end.

    Raises:
        NotGlcError, NewerVersionError, TruncatedError: as `unpack` would.
    """
    header = parse_header(start)
    # More than the longest code for every symbol of the padded image.
    return (1 << 20) + 16 * min(header.width * header.height, max_pixels)


def check_size(start: bytes, max_pixels: int = DEFAULT_LIMIT) -> None:
    """Check the image size in a file's first `HEADER` bytes.

    Raises:
        SizeLimitError: it exceeds `max_pixels`.
    """
    _, _, _, width, height, _ = _HEADER.unpack_from(start)
    if (width + 1) * (height + 1) > max_pixels:
        raise SizeLimitError(
            f"the image has {width + 1} x {height + 1} pixels, above the limit of {max_pixels}"
        )


def unpack(data: bytes, max_pixels: int = DEFAULT_LIMIT) -> tuple[Header, bytes]:
    """Check a file and return its header and the entropy coder's bytes.

    Allocates no more than the size of `data`.

    Args:
        data: the complete file.
        max_pixels: largest image to accept, width times height.

    Raises:
        NotGlcError, NewerVersionError, TruncatedError, CorruptFileError, SizeLimitError: see `glc.errors`.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"expected the bytes of a .glc file, got {type(data).__name__}: read the file first")
    data = bytes(data)
    _check_start(data, OVERHEAD)
    body, (checksum,) = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    if zlib.crc32(body) != checksum:
        raise CorruptFileError(f"corrupt or truncated file: checksum mismatch ({len(data)} bytes)")
    header = parse_header(body)
    check_size(body, max_pixels)
    payload = body[_HEADER.size :]
    if payload.endswith(b"\0"):
        raise CorruptFileError("corrupt file: the payload ends in a zero byte")
    return header, payload


def _check_start(data: bytes, least: int) -> None:
    if not data:
        raise NotGlcError("the file is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise NotGlcError("not a .glc file: it does not start with GLC")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        version = data[len(MAGIC)]
        if version < VERSION:
            raise CorruptFileError(f"corrupt file: format version {version} does not exist")
        raise NewerVersionError(
            f"the file has format version {version}; this glc reads version {VERSION}: update glc"
        )
    if len(data) < least:
        raise TruncatedError(f"truncated file: {len(data)} bytes; a .glc file has at least {OVERHEAD}")

"""Reading inputs and writing outputs, so that no half of a file is ever seen."""

import errno
import io
import os
import secrets
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from glc.cli.plan import Job
from glc.codec.bitstream import DEFAULT_LIMIT, HEADER, check_size, longest_file
from glc.codec.errors import DamagedError

_CHUNK = 1 << 20


def read_glc(source: Path | None, max_pixels: int = DEFAULT_LIMIT) -> bytes:
    """Return the bytes of a `.glc` file, or those on standard input for None.

    Raises:
        BitstreamError: when it begins like none, or goes on for longer than a file of its picture, or of any
            accepted one, can; the rest is not read then.
        OSError: when it cannot be read.
    """
    with open(source, "rb") if source is not None else nullcontext(sys.stdin.buffer) as file:
        start = file.read(HEADER)
        limit = longest_file(start, max_pixels)
        data = _read(file, limit + 1, start)
    if len(data) > limit:
        check_size(start, max_pixels)
        raise DamagedError(f"damaged: longer than any file of a picture of its size ({limit:,} bytes)")
    return data


def read_picture(stream: IO[bytes]) -> bytes:
    """Return the bytes of a picture on a stream.

    Raises:
        ImageError: there are more than a picture of the largest size has.
    """
    from glc.data.images import MAX_PIXELS, ImageError

    limit = MAX_PIXELS * 8 + (1 << 20)  # four channels of 16 bits, not compressed, and a header
    data = _read(stream, limit + 1)
    if len(data) > limit:
        raise ImageError(f"standard input: more than {limit:,} bytes, which no picture needs")
    return data


def _read(stream: IO[bytes], limit: int, start: bytes = b"") -> bytes:
    """Read on to the end or to so many bytes; one `read` would allocate the limit, whatever there is."""
    data = io.BytesIO()
    data.write(start)
    while chunk := stream.read(min(_CHUNK, limit - data.tell())):
        data.write(chunk)
    return data.getvalue()


def write_result(job: Job, data: bytes, force: bool) -> None:
    """Write a job's result, whole or not at all.

    Raises:
        FileExistsError: when a file has appeared there in the meantime, unless `force` is given.
        OSError: when it cannot be written.
    """
    if job.destination is None:
        _write_to_stdout(data)
    else:
        _write_file(job.destination, data, force)


def _write_file(destination: Path, data: bytes, force: bool) -> None:
    place = Path(os.path.realpath(destination))  # of a link, what it points to is replaced
    place.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: the destination's may be as long as names can be already.
    partial = place.with_name(f".glc-{secrets.token_hex(8)}.part")
    try:
        # Made by open, not by tempfile, for the permissions that the umask gives.
        with open(partial, "xb") as file:
            file.write(data)
        if not force and os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, "exists: replace it with --force", str(destination))
        os.replace(partial, place)
    except OSError as error:
        if error.filename in (None, str(partial), partial):
            raise OSError(error.errno, error.strerror, str(destination)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _write_to_stdout(data: bytes) -> None:
    stream = sys.stdout.buffer
    # Beneath the buffer: what could not be written would be tried again, and complained of, at the exit.
    raw = getattr(stream, "raw", stream)
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[raw.write(rest) or 0 :]
        stream.flush()
    except BrokenPipeError:
        raise  # the reader has seen enough
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error

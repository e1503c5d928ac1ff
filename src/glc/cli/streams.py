"""Reading inputs and writing outputs, so that no half of a file is ever seen."""

import errno
import os
import secrets
import sys
from pathlib import Path

from glc.cli.plan import Job
from glc.codec.bitstream import MAGIC, unpack


def read_glc(source: Path | None) -> bytes:
    """Return the bytes of a `.glc` file, or those on standard input for None.

    Raises:
        NotGlcError: when it begins like none; the rest is not read then.
        OSError: when it cannot be read.
    """
    if source is None:
        return sys.stdin.buffer.read()
    with open(source, "rb") as file:
        start = file.read(len(MAGIC))
        if start != MAGIC:
            unpack(start)  # says what it is instead
        return start + file.read()


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

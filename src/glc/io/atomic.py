"""Writing weights files so that none is ever half written."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glc.errors import WeightsError


def check_destination(destination: Path, source: Path, force: bool) -> None:
    """Check, before any work, that a file may be written.

    Raises:
        FileExistsError: when it exists and `force` is not set.
        WeightsError: when it is a folder, or the source itself.
    """
    if destination.is_dir():
        raise WeightsError(f"{destination}: a folder; give the name of the file to write")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise WeightsError(f"{destination}: the source itself; give the file to write another name")
    if destination.exists() and not force:
        raise FileExistsError(f"{destination}: exists; replace it with --force")


@contextmanager
def replacing(destination: Path) -> Iterator[Path]:
    """Give a name to write to; what was written there takes the destination's place when the block ends.

    Its folder is made. After an error the destination is what it was. The file can be read by whom the
    process's umask allows (safetensors lets nobody but the owner read what it writes).
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".glc-{secrets.token_hex(8)}.part")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)

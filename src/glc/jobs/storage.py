"""Folders of shards and of a job's state: local paths, and URLs of any store that fsspec knows.

A job needs three operations to be atomic: `create` (one of several writers wins), `move` (to the final name,
replacing), and locally `fence` (afterwards every `create` and `move` in a folder fails).

| | local | object store |
|---|---|---|
| `create` | hard link | put if absent: S3 (`If-None-Match`), Google, memory; others: a check before the put |
| `move` | rename | copy in the store, then delete |
| `fence` | rename of the folder | delete; `Folder.check` before each move narrows the gap |
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from glc.io import atomic

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
"""The extra that has the package of a protocol."""
_BUCKETS = ("s3", "s3a", "gs", "gcs")
_VERSIONS = ("ETag", "etag", "generation", "mtime", "LastModified", "updated", "created")
"""Keys of `fsspec`'s details that change with a file's content, the most certain first."""


class Stamp(NamedTuple):
    """Size and version of a file; tar padding hides changes of size, so both are compared."""

    bytes: int
    version: str
    """Modification time in ns, or the store's ETag or generation."""


def is_url(name: str) -> bool:
    """Whether a name is a URL or a command (`pipe:`), not a local path."""
    return _URL.match(name) is not None


def open_store(root: str | os.PathLike[str]) -> LocalStore | UrlStore:
    """Return the folder at a path or URL, which need not exist."""
    return UrlStore(os.fspath(root)) if is_url(os.fspath(root)) else LocalStore(Path(root))


def stamp(path: str) -> Stamp | None:
    """Return size and version of a file at a path or URL; None if it is missing or not readable."""
    try:
        if is_url(path):
            with storage_errors(path):
                system, name = _system(path)
                found = system.info(name)
            version = next((str(found[key]) for key in _VERSIONS if found.get(key)), "")
            return Stamp(int(found["size"]), version)
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError:
        if is_url(path):
            raise  # a store that cannot be reached says nothing about the shard
        return None
    return Stamp(status.st_size, str(status.st_mtime_ns))


def expand(pattern: str) -> list[str]:
    """Return the URLs that match a pattern with `*` or `**`, sorted; of a chain `a::b`, `b` is listed.

    Raises:
        OSError: the store cannot be reached, or cannot list; the message does not name the URL.
    """
    outer, chained, inner = pattern.rpartition("::")
    with plain_errors(pattern):
        system, path = _system(inner)
        before = inner.removesuffix(path.lstrip("/"))  # `memory://a` and `memory:///a` stay as given
        if before == inner:
            return sorted(outer + chained + system.unstrip_protocol(name) for name in system.glob(path))
        return sorted(outer + chained + before + name.lstrip("/") for name in system.glob(path))


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """Yield a local path with the content of a path or URL; a copy is removed afterwards."""
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="glc-") as folder:
        copy = Path(folder, "shard.tar")
        with storage_errors(path):
            system, name = _system(path)
            system.get_file(name, str(copy))
        yield copy


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert errors of a storage library as `plain_errors` does, with the URL before the text."""
    try:
        with plain_errors(url):
            yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: {error}") from error
    except OSError as error:
        raise OSError(f"{url}: {error}") from error


@contextmanager
def plain_errors(url: str) -> Iterator[None]:
    """Convert any error of fsspec or a storage library to an OSError with one line of text.

    FileExistsError and FileNotFoundError keep their types. fsspec reports every failure of an HTTP request as
    a missing file; only what the server itself refuses (4xx) remains one.
    """
    try:
        yield
    except FileExistsError:
        raise
    except ImportError as error:
        raise OSError(_how_to_install(url, error)) from error
    except FileNotFoundError as error:
        cause = error.__cause__
        status = getattr(cause, "status", 0)
        if cause is not None and (status or isinstance(cause, OSError)):
            missing = 400 <= status < 500 or isinstance(cause, FileNotFoundError)
            raise (FileNotFoundError if missing else OSError)(reason(cause)) from error
        raise FileNotFoundError("no such file") from error
    except Exception as error:
        raise OSError(reason(error)) from error


def protocol_of(url: str) -> str:
    """Return the protocol of a URL, of a chain `a::b` that of `b`."""
    return url.rpartition("::")[2].partition(":")[0].lower()


def _how_to_install(url: str, error: ImportError) -> str:
    extra = _EXTRAS.get(protocol_of(url))
    if extra is None:
        return f"its package is missing ({reason(error)})"
    return f"the package for {protocol_of(url)}:// is not installed; run pip install 'glc-codec[{extra}]'"


def reason(error: BaseException) -> str:
    """Return the text of an error of a storage library, in one line."""
    if hasattr(error, "status") and hasattr(error, "message"):  # aiohttp
        return f"{error.status} {error.message}"
    plain = isinstance(error, OSError) and type(error).__module__ == "builtins"
    text = " ".join(str(error.strerror if plain and error.strerror else error).split())  # type: ignore[attr-defined]
    return text[:300] or type(error).__name__


def _system(url: str) -> tuple[Any, str]:
    import fsspec  # not for local paths

    system, path = fsspec.url_to_fs(url)
    system.invalidate_cache()  # other processes write too
    return system, path


class LocalStore:
    """A local folder, also on a file system that several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def makedirs(self, name: str) -> None:
        """Create a folder."""
        (self.root / name).mkdir(parents=True, exist_ok=True)

    def list(self, name: str) -> dict[str, int]:
        """Return the files in a folder with their sizes; none if it does not exist."""
        found = {}
        with suppress(FileNotFoundError), os.scandir(self.root / name) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed meanwhile
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file; return False if it exists. Its folder must exist."""
        return atomic.create(self.root / name, data)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield the local path of a new file; it is complete when the block ends. Its folder must exist."""
        yield self.root / name

    def move(self, name: str, to: str) -> None:
        """Rename a file, replacing another.

        Raises:
            FileNotFoundError: it does not exist.
        """
        atomic.publish(self.root / name, self.root / to, fsync=True)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        (self.root / name).unlink(missing_ok=True)

    def fence(self, name: str) -> None:
        """Remove a folder in one step: from then on nothing can be created in it or moved out of it."""
        atomic.remove_folder(self.root / name)


class UrlStore:
    """A folder at a URL; whole files are uploaded."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def __str__(self) -> str:
        return self.root

    @contextmanager
    def _at(self, *names: str) -> Iterator[Any]:
        with storage_errors(self.root):
            system, root = _system(self.root)
            yield (system, *(f"{root}/{name}".rstrip("/") for name in names))

    def makedirs(self, name: str) -> None:
        """Create a folder; not in an object store, which has none: fsspec would create the bucket."""
        if protocol_of(self.root) not in _BUCKETS:
            with self._at(name) as (system, path):
                system.makedirs(path, exist_ok=True)

    def list(self, name: str) -> dict[str, int]:
        """Return the files in a folder with their sizes; none if it does not exist."""
        with suppress(FileNotFoundError), self._at(name) as (system, path):
            entries = system.ls(path, detail=True)
            return {e["name"].rpartition("/")[2]: e["size"] for e in entries if e["type"] == "file"}
        return {}

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        with suppress(FileNotFoundError), self._at(name) as (system, path):
            return bytes(system.cat_file(path))
        return None

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file; return False if it exists."""
        try:
            with self._at(name) as (system, path):
                system.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local path; what is written there is uploaded when the block ends."""
        with tempfile.TemporaryDirectory(prefix="glc-") as folder:
            part = Path(folder, "part")
            yield part
            if part.exists():
                with self._at(name) as (system, path):
                    system.put_file(str(part), path)

    def move(self, name: str, to: str) -> None:
        """Copy a file within the store, replacing another, and delete it; see `LocalStore.move`."""
        with self._at(name, to) as (system, path, target):
            system.cp_file(path, target)
            system.rm_file(path)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError), self._at(name) as (system, path):
            system.rm_file(path)

    def fence(self, name: str) -> None:
        """Delete a folder's files, one after the other."""
        for file in self.list(name):
            self.remove(f"{name}/{file}")

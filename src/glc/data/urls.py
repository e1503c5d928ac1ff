"""Files at URLs (through fsspec) and outputs of commands (`pipe:COMMAND`), read from front to back.

Functions take URLs as text and open them anew, so they work in any process: nothing that is open is pickled
or inherited by a forked worker. Whatever a storage library raises becomes an OSError with one line of text.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, BinaryIO, cast

import fsspec

from glc.data.deadline import Watch
from glc.jobs.storage import is_url, plain_errors, protocol_of

_PIPE = "pipe:"
_SMALL = 1 << 16
_SILENCE = 60.0  # seconds without a byte after which an HTTP request fails

_COMMANDS = {
    **dict.fromkeys(("s3", "s3a"), "aws s3 cp {url} -"),
    **dict.fromkeys(("gs", "gcs"), "gcloud storage cat {url}"),
    "hf": "curl -sfL https://huggingface.co/...",
}
"""Commands that read a URL without the packages that are extras."""


def is_pattern(url: str) -> bool:
    """Whether a URL is a pattern to list; a `?` separates a query in URLs, it is not a pattern."""
    return "*" in url and not url.startswith(_PIPE)


def read_url(url: str) -> bytes:
    """Return the content of a small file.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be read.
    """
    with open_url(url) as file:
        return b"".join(iter(lambda: file.read(1 << 20), b""))


def open_url(url: str, watch: Watch | None = None) -> AbstractContextManager[BinaryIO]:
    """Open a URL, a command or a local path to be read from front to back.

    Args:
        url: a URL of any protocol that fsspec knows, `pipe:COMMAND` for the shell, or a path.
        watch: is told of the first byte. With it requests are small, so that a slow store is not taken for a
            dead one.

    Raises:
        OSError: it cannot be opened; reading raises only OSError too.
    """
    file: Any
    if url.startswith(_PIPE):
        file = _Command(url.removeprefix(_PIPE))
    elif is_url(url):
        with _one_line(url):
            file = _UrlFile(url, None if watch is None else _SMALL)
    else:
        file = open(url, "rb")  # noqa: SIM115 (the caller closes it)
    return cast(AbstractContextManager[BinaryIO], file if watch is None else _Watched(file, watch))


class _Reader(io.RawIOBase):
    """A file that is only read from front to back."""

    def readable(self) -> bool:
        return True


class _UrlFile(_Reader):
    """A file that fsspec opens.

    HTTP servers are asked for ranges of some MB, so that a pause in training does not end a connection; from
    a server without ranges the file is one response.
    """

    def __init__(self, url: str, block_size: int | None) -> None:
        self._url = url
        self._http = url.lower().startswith(("http://", "https://"))
        self._system, self._path = fsspec.url_to_fs(url, **(_http_options(url) if self._http else {}))
        self._file = self._system.open(self._path, "rb", block_size)
        self._offset = 0

    def read(self, size: int = -1) -> bytes:
        with _one_line(self._url):
            try:
                data = self._file.read(size)
            except ValueError:
                if not self._http or not self._offset:
                    raise
                self._reopen_as_stream()
                data = self._file.read(size)
        self._offset += len(data)
        return cast(bytes, data)

    def _reopen_as_stream(self) -> None:
        self._file.close()
        self._file = self._system.open(self._path, "rb", block_size=0)
        left = self._offset
        while left:
            passed = len(self._file.read(min(left, 1 << 20)))
            if not passed:
                raise OSError("the server has neither ranges nor a complete file")
            left -= passed

    def close(self) -> None:
        if not self.closed:
            with suppress(Exception):
                self._file.close()
        super().close()


def _http_options(url: str) -> dict[str, Any]:
    """Return options for fsspec: no limit for a complete response, which training may read for minutes.

    aiohttp's default is 300 s.
    """
    from aiohttp import ClientTimeout

    given = fsspec.config.conf.get(url.partition(":")[0].lower(), {}).get("client_kwargs", {})
    timeout = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return {"client_kwargs": {"timeout": timeout, **given}}


class _Command(_Reader):
    """The output of a shell command; at its end a failure of the command is an error."""

    def __init__(self, command: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        # A session of its own: Ctrl-C lets a worker read on for the step that is running.
        self._process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def read(self, size: int = -1) -> bytes:
        data = cast(io.BufferedReader, self._process.stdout).read1(size)  # what there is
        if not data and size:
            code = self._process.wait()
            if code:
                self._errors.seek(0)
                said = self._errors.read().decode(errors="replace").strip().splitlines()
                raise OSError(": ".join([f"the command failed with exit code {code}", *said[-1:]]))
        return data

    def kill(self) -> None:
        """End the command and what it started."""
        if self._process.poll() is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        if not self.closed:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self.kill()
            self._process.wait()
            self._errors.close()
        super().close()


class _Watched(_Reader):
    """A file whose first byte is noted."""

    def __init__(self, file: Any, watch: Watch) -> None:
        self._file, self._watch = file, watch
        if isinstance(file, _Command):
            watch.on_stop(file.kill)

    def read(self, size: int = -1) -> bytes:
        data = cast(bytes, self._file.read(size))
        self._watch.note(bool(data))
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    """Convert errors as `plain_errors` does; for a missing package name the command that replaces it too."""
    try:
        with plain_errors(url):
            yield
    except OSError as error:
        command = _COMMANDS.get(protocol_of(url))
        if command is None or not isinstance(error.__cause__, ImportError):
            raise
        raise OSError(f"{error}, or give pipe:{command.format(url=url)}") from error.__cause__

"""What the web app's server refuses before gradio sees it, and the folder of its uploads.

A page of another site can send requests to a server on this machine through the user's browser, and can give
its own name the address 127.0.0.1 (DNS rebinding). Hosts and origins are therefore checked at each request.
"""

import ipaddress
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

JSON_BYTES = 1 << 20
"""Maximum size of a request that is not an upload."""
REQUEST_FILES = 3
"""Largest files that one upload may have: background, layer and composite of the editor."""
STORED_FILES = 32
"""Largest files that the folder of uploads may have at a time."""
KEPT_SECONDS = 3600
"""Files older than this are deleted; abandoned folders of other servers after twice the time."""
_SWEEP_SECONDS = 300
_PREFIX = "glc-page-"
_UPLOAD = "/gradio_api/upload"
_PATHS = re.compile(
    r"/(config|favicon\.ico|manifest\.json|robots\.txt|theme\.css)?/?"
    r"|/(static|assets|svelte|pwa_icon|decoder)(/.*)?"
    r"|/gradio_api/(queue/(join|data)|upload|upload_progress|reset|cancel|app_id|info|heartbeat/[^/]+"
    r"|startup-events|theme\.css|user|token|login_check)/?"
    r"|/gradio_api/file=(?!\w{2,}:).*"
)
"""What the page requests. gradio's other paths (its proxy, recordings, single calls) are not served."""


class Folder:
    """A temporary folder whose files are deleted by age, those of aborted uploads included.

    It is deleted with the process; the folder of a killed process by the next one.
    """

    def __init__(self) -> None:
        for other in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            if _age(other) > 2 * KEPT_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        threading.Thread(target=self._sweep_forever, daemon=True).start()

    def _sweep_forever(self) -> None:
        while self.path.is_dir():
            self.sweep()
            time.sleep(_SWEEP_SECONDS)

    def sweep(self) -> None:
        """Delete old files and the folders that they leave empty; mark this folder as in use."""
        for file in sorted(self.path.rglob("*"), reverse=True):  # contents before their folder
            if _age(file) > KEPT_SECONDS:
                with suppress(OSError):  # a folder with newer files, or deleted meanwhile
                    file.rmdir() if file.is_dir() else file.unlink()
        os.utime(self.path)

    def bytes(self) -> int:
        """Return the size of all files."""
        return sum(_size(file) for file in self.path.rglob("*"))


class Guard:
    """ASGI middleware that refuses requests in one line of text.

    Args:
        app: the application that gets the other requests.
        folder: where it stores uploads.
        max_bytes: maximum size of an uploaded file.
        hosts: names by which browsers may address the server; addresses (127.0.0.1, ::1) and localhost are
            always allowed, because no site can rebind those.
    """

    def __init__(self, app: App, folder: Folder, max_bytes: int, hosts: Collection[str] = ()) -> None:
        self.app, self.folder, self.max_bytes = app, folder, max_bytes
        self.hosts = {host.lower() for host in hosts}
        self._pending = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve or refuse a request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # the page uses no websocket; the server then refuses the connection
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal is not None:
            return await _answer(send, *refusal)
        upload = scope["path"].rstrip("/") == _UPLOAD
        limit = REQUEST_FILES * self.max_bytes + JSON_BYTES if upload else JSON_BYTES
        length = _length(headers)
        if length is not None and length > limit:
            return await _answer(send, 413, f"{length} bytes, more than the limit of {limit}")
        reserved = (limit if length is None else length) if upload else 0
        if upload and self.folder.bytes() + self._pending + reserved > STORED_FILES * self.max_bytes:
            return await _answer(send, 507, "too many uploads are stored; try again in an hour")
        received, started = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self._pending += reserved
        try:
            await self.app(scope, counted, watched)
        except _TooLarge:
            if not started:
                await _answer(send, 413, f"more than the limit of {limit} bytes")
        finally:
            self._pending -= reserved

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_allowed(_name(host)):
            return 403, f"the host {_name(host)!r} is not allowed; start the server with --allow-host NAME"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host and _name(origin) not in self.hosts:
            return 403, f"requests from {origin!r} are not allowed"
        if method not in ("GET", "HEAD") and headers.get("sec-fetch-site") == "cross-site":
            return 403, "requests from other sites are not allowed"
        if not _PATHS.fullmatch(path):
            return 404, "not found"
        return None

    def _is_allowed(self, name: str) -> bool:
        if name in self.hosts or name == "localhost":
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _TooLarge(Exception):
    pass


def _name(address: str) -> str:
    """Return the host name in an origin or a Host header, in lower case; empty if there is none."""
    try:
        return urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def _length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() and len(text) < 20 else None


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0

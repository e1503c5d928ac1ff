"""Requests that the web app's server refuses, and the folder of its uploads; without gradio."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from glc.app import guard
from glc.app.guard import JSON_BYTES, KEPT_SECONDS, REQUEST_FILES, STORED_FILES, Folder, Guard

UPLOAD = "/gradio_api/upload"
JOIN = "/gradio_api/queue/join"
MAX_BYTES = 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(guard.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(guard.tempfile, "tempdir", str(tmp_path))
    return Folder()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the whole body."""
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def ask(
    folder: Folder, path: str = "/", method: str = "GET", body: tuple[bytes, ...] = (b"",), **headers: str
) -> tuple[int, str]:
    """Return status and text of the answer to a request."""
    named = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): text for name, text in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), text.encode()) for name, text in named.items()],
    }
    chunks, sent = list(body), []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(echo, folder, MAX_BYTES, ["0.0.0.0", "photos.example"])(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "192.168.1.5", "Photos.Example", "10.0.0.1:80"]
)
def test_addresses_and_allowed_names_are_served(host: str, folder: Folder) -> None:
    assert ask(folder, host=host) == (200, "done")
    assert ask(folder, host=host, origin=f"https://{host}") == (200, "done")


@pytest.mark.parametrize(
    "host", ["rebound.example:7860", "localhost.evil.example", "127.0.0.1.nip.example", ""]
)
def test_other_names_are_refused(host: str, folder: Folder) -> None:
    """A site that gives its own name this machine's address (DNS rebinding) sends its name."""
    status, text = ask(folder, host=host)
    assert status == 403
    assert "--allow-host NAME" in text


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:8000", "http://localhost:7860"]
)
@pytest.mark.parametrize("path", [UPLOAD, JOIN, "/"])
def test_requests_of_other_origins_are_refused(path: str, origin: str, folder: Folder) -> None:
    assert ask(folder, path, "POST", origin=origin) == (403, f"requests from {origin!r} are not allowed")


def test_cross_site_request_without_an_origin_is_refused(folder: Folder) -> None:
    assert ask(folder, UPLOAD, "POST", sec_fetch_site="cross-site")[0] == 403
    assert ask(folder, sec_fetch_site="cross-site") == (200, "done")  # a link on another site


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://evil.example/x",
        "/gradio_api/file=https://evil.example/x",
        "/gradio_api/run/compress",
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit",
        "/monitoring",
        "/docs",
    ],
)
def test_paths_that_the_page_does_not_use_are_not_served(path: str, folder: Folder) -> None:
    assert ask(folder, path) == (404, "not found")


@pytest.mark.parametrize(
    "path", ["/gradio_api/file=/tmp/a.png", "/gradio_api/file=C:/a.png", "/assets/index.js"]
)
def test_paths_of_the_page_are_served(path: str, folder: Folder) -> None:
    assert ask(folder, path) == (200, "done")


@pytest.mark.parametrize(
    ("path", "limit"), [(JOIN, JSON_BYTES), (UPLOAD, REQUEST_FILES * MAX_BYTES + JSON_BYTES)]
)
@pytest.mark.parametrize("told", [False, True], ids=["chunked", "content-length"])
def test_bodies_are_limited(
    path: str, limit: int, told: bool, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STORED_FILES", 10_000)
    for size, status in ((limit, 200), (limit + 1, 413)):
        half = size // 2
        headers = {"content_length": str(size)} if told else {}
        assert ask(folder, path, "POST", (bytes(half), bytes(size - half)), **headers)[0] == status


def test_stored_uploads_are_limited_together(folder: Folder) -> None:
    (folder.path / "stored").write_bytes(bytes(STORED_FILES * MAX_BYTES - 500))
    assert ask(folder, UPLOAD, "POST", content_length="500")[0] == 200
    status, text = ask(folder, UPLOAD, "POST", content_length="501")
    assert (status, text) == (507, "too many uploads are stored; try again in an hour")
    assert ask(folder, JOIN, "POST", content_length="501")[0] == 200


def test_old_files_are_deleted_also_those_of_no_finished_upload(folder: Folder) -> None:
    old, new = folder.path / "tmpabc", folder.path / "hash" / "photo.png"
    empty = folder.path / "empty"
    new.parent.mkdir()
    empty.mkdir()
    for file in (old, new):
        file.write_bytes(b"x")
    past = time.time() - KEPT_SECONDS - 1
    for file in (old, new.parent, empty):
        os.utime(file, (past, past))
    folder.sweep()
    assert sorted(folder.path.rglob("*")) == [new.parent, new]


def test_next_server_deletes_the_folder_of_a_killed_one(folder: Folder) -> None:
    killed = folder.path.with_name("glc-page-killed")
    other = folder.path.with_name("something-else")
    for path in (killed, other):
        path.mkdir()
        (path / "upload").write_bytes(b"x")
        past = time.time() - 2 * KEPT_SECONDS - 1
        os.utime(path, (past, past))
    Folder()
    assert not killed.exists()
    assert other.exists()
    assert folder.path.exists()  # in use

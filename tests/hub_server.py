"""A stand-in for the HTTP interface of the Hugging Face hub: repositories in memory, one branch each."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories with their commits; `asked` lists the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by repository and commit; the last commit is the head of `main`."""
        self.tags: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.token: str | None = None
        """The token that writing needs; None: no token."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit on top of the last one and return its name."""
        history = self.commits.setdefault(repo, {})
        content = {**(history[list(history)[-1]] if history else {}), **files}
        start = f"{len(history)}{sorted((name, _sha256(data)) for name, data in content.items())}"
        name = hashlib.sha1(start.encode()).hexdigest()
        history[name] = content
        return name

    def resolve(self, repo: str, revision: str) -> str | None:
        """Return the commit of a revision."""
        history = self.commits.get(repo, {})
        revision = self.tags.get(revision, revision)
        return (
            list(history)[-1] if revision == "main" and history else revision if revision in history else None
        )


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return self._answer(404, b"")
        repo, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if repo not in self.server.commits:
            return self._answer(
                401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        commit = self.server.resolve(repo, revision)
        if commit is None:
            return self._answer(
                404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev"}
            )
        data = self.server.commits[repo][commit].get(file)
        if data is None:
            return self._answer(
                404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            )
        self._answer(200, data, {"X-Repo-Commit": commit, "ETag": f'"{_sha256(data)}"'})

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer(401, b'{"error": "Invalid username or password."}')
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.commits.setdefault(repo, {})
            return self._json({"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[-1] == "batch":
            objects = json.loads(body)["objects"]
            upload = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/upload/{each['oid']}"}}}
                for each in objects
            ]
            return self._json({"transfer": "basic", "objects": upload})
        repo = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in files]
            found = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(files, modes, strict=True)
            ]
            return self._json({"files": found})
        assert parts[4] == "commit"
        written = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                written[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                written[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.commit(repo, written)
        url = f"{self.server.url}/{repo}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit, "success": True})

    def do_PUT(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert _sha256(data) == oid
        self.server.objects[oid] = data
        self._answer(200, b"")

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@contextmanager
def hub() -> Iterator[Hub]:
    """Run a hub without repositories."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

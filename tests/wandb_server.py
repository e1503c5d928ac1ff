"""A stand-in for W&B's server on this machine: what `wandb sync` uploads, and the lineage of artifacts.

It answers the requests of the pinned client as the server does in three points: a run that exists reports its
rows and its summary to a client that resumes it, rows are stored at the line that the client gives, and an
artifact of known content is not stored again.
"""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """What the server has of a run."""

    variables: dict[str, Any] = field(default_factory=dict)
    """Of the last `UpsertBucket`: `groupName`, `jobType`, `displayName` and more."""
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    """History by line."""
    summary: dict[str, Any] = field(default_factory=dict)
    logged: set[str] = field(default_factory=set)
    """Artifacts `NAME:DIGEST` that it logged, used ones that were not known among them."""
    used: set[str] = field(default_factory=set)


class Server:
    """The state of the server."""

    def __init__(self) -> None:
        self.url = ""
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, str] = {}
        """`NAME:DIGEST` by id."""

    def answer(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL response."""
        project = {"id": "P", "name": "glc", "entity": {"id": "E", "name": "me"}}
        if operation == "Viewer":
            return {"viewer": {"id": "me", "entity": "me", "username": "me", "flags": "{}"}}
        if operation == "UpsertBucket":
            run = self.runs.setdefault(values["name"], Run())
            run.variables |= {key: value for key, value in values.items() if value is not None}
            bucket = {"id": values["name"], "name": values["name"], "displayName": values["displayName"]}
            bucket |= {"historyLineCount": len(run.rows), "project": project, "config": values["config"]}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "RunResumeStatus":
            found = self.runs.get(values["name"])
            bucket = None if found is None or not found.rows else self._resumable(values["name"], found)
            return {"model": {**project, "bucket": bucket}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/files"} for name in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        return self._artifact(operation, values)

    def _resumable(self, name: str, run: Run) -> dict[str, Any]:
        config = {"config": run.variables.get("config", "{}"), "wandbConfig": json.dumps({"t": 1})}
        tail = json.dumps([json.dumps(run.rows[max(run.rows)])])
        counts = {"historyLineCount": len(run.rows), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": tail, "eventsTail": "[]", "summaryMetrics": json.dumps(run.summary)}
        return {"id": name, "name": name, "displayName": name, "tags": [], **config, **counts, **tails}

    def _artifact(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        given = values.get("input", {})
        if operation == "CreateArtifact":
            key = f"{given['artifactCollectionName']}:{given['digest']}"
            known = next((found for found, name in self.artifacts.items() if name == key), None)
            identity = known or f"artifact{len(self.artifacts)}"
            self.artifacts[identity] = key
            if known is None:
                self.runs[given["runName"]].logged.add(key)
            state = {"state": "PENDING" if known is None else "COMMITTED"}
            made = {"id": identity, **state, "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if operation == "UseArtifact":
            self.runs[given["runName"]].used.add(self.artifacts[given["artifactID"]])
            return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            file = {"id": "F", "uploadUrl": f"{self.url}/files", "uploadHeaders": []}
            manifest = {"artifactManifest": {"id": "M", "file": file}}
            return {operation[0].lower() + operation[1:]: manifest}
        if operation == "CreateArtifactFiles":
            about = {"storagePath": None, "uploadUrl": f"{self.url}/files", "uploadHeaders": []}
            nodes = [{**about, "artifact": {"id": file["artifactID"]}} for file in given["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": ""}}}
        return {}

    def stream(self, run_id: str, files: dict[str, Any]) -> None:
        """Store rows and summary."""
        run = self.runs[run_id]
        for name, chunk in files.items():
            if name == "wandb-history.jsonl":
                for number, line in enumerate(chunk["content"], chunk["offset"]):
                    run.rows[number] = json.loads(line)
            elif name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])

    def sync(self, folder: Path, *parts: Path) -> None:
        """Run `wandb sync` of the pinned client on parts of offline runs, in a folder for its log."""
        environment = {**os.environ, "WANDB_BASE_URL": self.url, "WANDB_API_KEY": "k" * 40}
        environment.pop("WANDB_MODE", None)
        words: Sequence[str] = [sys.executable, "-m", "wandb", "sync", *map(str, parts)]
        subprocess.run(words, env=environment, cwd=folder, capture_output=True, timeout=120, check=True)


@contextmanager
def wandb_server() -> Iterator[Server]:
    """Serve on a free port within the context."""
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def _answer(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._answer({})

        def do_PUT(self) -> None:
            self._body()
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            if self.path == "/graphql":
                asked = json.loads(body)
                with lock:  # the client sends artifacts side by side
                    data = state.answer(asked.get("operationName", ""), asked.get("variables") or {})
                self._answer({"data": data})
                return
            if self.path.endswith("/file_stream"):
                state.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
            self._answer({"limits": {}})

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:  # a client that ends resets its connections
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()

"""A web server in this process, with or without ranges, or one that never answers."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves a folder and counts the bytes of its answers."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool, pause: float) -> None:
        self.folder, self.ranges, self.pause = folder, ranges, pause
        self.sent = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def __init__(self, request, address, server):
        super().__init__(request, address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return super().do_GET()
        data, start = path.read_bytes(), 0
        if asked and self.server.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            for position in range(0, len(data), 1 << 16):
                self.server.sent += self.wfile.write(data[position : position + (1 << 16)])
                time.sleep(self.server.pause)
        except OSError:
            pass  # the reader has enough

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving(folder: Path, ranges: bool = True, pause: float = 0) -> Iterator[Server]:
    """Serve a folder; `pause`: seconds after each 64 KiB."""
    server = Server(folder, ranges, pause)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """Accept connections and never answer; yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def refusing() -> str:
    """Return the URL of a port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

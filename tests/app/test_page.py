"""The served web app, without a browser: what SECURITY.md promises. Skipped without gradio (`make app`)."""

import http.client
import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.app.served import MODEL, UPLOAD, Served, serve
from tests.codec.fixed_model import fixed_codec_weights, fixed_image

BOUNDARY = "boundary"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    fixed_codec_weights(folder / f"{MODEL}.safetensors")
    Image.fromarray(fixed_image(64, 96)).save(folder / "photo.png")
    with serve(folder) as found:
        yield found


def ask(
    served: Served, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request(method, path, body, named)
    answer = connection.getresponse()
    return answer.status, answer.read()


def form(content: bytes, name: str = "photo.png") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def upload(served: Served, content: bytes, **headers: str) -> tuple[int, bytes]:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return ask(served, "POST", UPLOAD, form(content), content_type=kind, **headers)


def run(served: Served, file: dict[str, Any], uncertainty: bool = False) -> dict[str, Any]:
    """Compress an uploaded file as the page does; return the last message of the server."""
    config = json.loads(ask(served, "GET", "/config")[1])
    action = next(d["id"] for d in config["dependencies"] if any(t[1] == "upload" for t in d["targets"]))
    data = [{**file, "meta": {"_type": "gradio.FileData"}}, MODEL, "quality", 50, 1000, uncertainty]
    session = f"s{time.monotonic_ns()}"
    body = json.dumps({"data": data, "fn_index": action, "session_hash": session}).encode()
    status, text = ask(served, "POST", "/gradio_api/queue/join", body, content_type="application/json")
    assert status == 200, text
    _, events = ask(served, "GET", f"/gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line.removeprefix("data: ")) for line in events.decode().splitlines() if line]
    return next(message for message in messages if message["msg"] == "process_completed")


def test_an_image_is_uploaded_and_compressed(served: Served) -> None:
    status, text = upload(served, (served.folder / "photo.png").read_bytes())
    assert status == 200
    (path,) = json.loads(text)
    assert Path(path).is_relative_to(served.uploads())
    message = run(served, {"path": path})
    assert message["success"], message
    file = message["output"]["data"][-1]
    status, data = ask(served, "GET", f"/gradio_api/file={file['path']}")
    assert (status, data[:3]) == (200, b"GLC")
    assert message["output"]["data"][1] == {"__type__": "update", "value": None, "visible": False}


def test_the_map_of_uncertainty_is_shown_if_wanted(served: Served) -> None:
    (path,) = json.loads(upload(served, (served.folder / "photo.png").read_bytes())[1])
    message = run(served, {"path": path}, uncertainty=True)
    assert message["success"], message
    shown = message["output"]["data"][1]
    assert shown["visible"] is True
    _, data = ask(served, "GET", f"/gradio_api/file={shown['value']['path']}")
    expected = Image.open(served.folder / "photo.png").size
    found = Image.open(io.BytesIO(data))
    assert found.size == expected
    assert np.asarray(found).max() > 0


def test_other_hosts_and_origins_can_neither_read_nor_store(served: Served) -> None:
    before = served.stored()
    for headers in ({"host": "rebound.example"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        assert upload(served, b"x", **headers)[0] == 403
        assert ask(served, "GET", "/config", **headers)[0] == 403
    assert served.stored() == before


def test_nothing_is_fetched_for_an_input_that_is_a_url(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.png"
        for file in ({"path": url}, {"path": url, "url": url}, {"path": "photo.png", "url": url}):
            message = run(served, file)
            assert not message["success"]
        assert ask(served, "GET", f"/gradio_api/file={url}")[0] == 404
        assert ask(served, "GET", f"/gradio_api/proxy={url}")[0] == 404
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert f"{url}: this server fetches nothing" in served.log.read_text()


def test_bodies_over_the_limits_are_refused(served: Served) -> None:
    before = served.stored()
    assert upload(served, bytes(1_000_001))[0] == 413  # of one file, by gradio
    for path, length, limit in (
        ("/gradio_api/queue/join", 2_000_000, 1_048_576),
        (UPLOAD, 5_000_000, 4_048_576),
    ):
        # Refused by its header: the body is not waited for.
        status, text = ask(served, "POST", path, content_length=str(length))
        assert (status, text.decode()) == (413, f"{length} bytes, more than the limit of {limit}")
    assert served.stored() == before


def test_aborted_upload_stays_in_the_folder_that_is_swept(served: Served) -> None:
    before = served.stored()
    body = form(bytes(200_000))
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = f"POST {UPLOAD} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        connection.sendall(head.encode() + body[:100_000])
        end = time.monotonic() + 20
        while not served.stored() - before:
            assert time.monotonic() < end, "nothing was stored below the folder that the server sweeps"
            time.sleep(0.1)

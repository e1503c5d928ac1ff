"""The page that decodes `.glc` files, in a real browser.

It needs ONNX Runtime Web, which `make web` fetches; without it these tests are skipped.
"""

import base64
import io
import json
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import glc
from glc import pretrained
from glc.app.decoder_page import has_runtime, write_page
from tests.browser.conftest import OpenPage, Watched
from tests.programs import load_script

SMALL = Path(pretrained.__path__[0]) / "small.safetensors"
EXPECTED = Path(__file__).parents[1] / "expected" / "small"
GOLDEN = json.loads((EXPECTED / "golden.json").read_text())["files"]
CHELSEA = EXPECTED / "chelsea_q45.5.glc"
# D takes seconds in a browser, far more beside other tests.
TIMEOUT = 120_000

pytestmark = pytest.mark.skipif(not has_runtime(), reason="ONNX Runtime Web is missing: run `make web`")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page for the bundled codec, on a plain file server."""
    folder = tmp_path_factory.mktemp("decoder")
    write_page(folder, [SMALL])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(address: str, open_page: OpenPage) -> Iterator[Watched]:
    watched = open_page(address, offline=False)
    watched.page.set_default_timeout(TIMEOUT)
    yield watched
    # No request leaves the page.
    assert not [url for url in watched.requests if not url.startswith((address, f"blob:{address}"))]
    assert not watched.errors


DECODE = """
async (files) => {
    const { IntegerDecoder, Weights } = await import("./index.js");
    const answer = await fetch("models/small.safetensors");
    const decoder = new IntegerDecoder(new Weights(new Uint8Array(await answer.arrayBuffer())));
    const characters = (values) => Array.from(new Uint8Array(values.buffer), (b) => String.fromCharCode(b));
    const text = (values) => btoa(characters(values).join(""));
    return files.map((file) => {
        const { z, y, height, width } = decoder.decode(Uint8Array.from(atob(file), (c) => c.charCodeAt(0)));
        return { z: text(z), y: text(y), height, width };
    });
}
"""


def test_golden_files_have_the_same_integers(page: Watched) -> None:
    files = [base64.b64encode((EXPECTED / name).read_bytes()).decode() for name in GOLDEN]
    digest = load_script("ship_model").digest
    for (name, expected), found in zip(GOLDEN.items(), page.page.evaluate(DECODE, files), strict=True):
        z, y = (np.frombuffer(base64.b64decode(found[key]), "<i4") for key in ("z", "y"))
        h, w = found["height"], found["width"]
        symbols = SimpleNamespace(z=z.reshape(1, h // 4, w // 4), y=y.reshape(1, -1, h, w))
        assert digest(symbols) == expected["symbols"], name


def test_a_dropped_file_is_shown_and_saved(page: Watched) -> None:
    data = CHELSEA.read_bytes()
    page.page.evaluate(
        """([text, name]) => {
            window.seen = [];
            const status = document.getElementById("status");
            const note = () => window.seen.push(status.textContent);
            new MutationObserver(note).observe(status, { childList: true });
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }""",
        [base64.b64encode(data).decode(), CHELSEA.name],
    )
    page.page.get_by_text("decoded in").wait_for()
    seen = page.page.evaluate("window.seen")
    assert [text for text in seen if text.startswith("preview from the hyper-latent alone")]
    facts = page.page.locator("#facts").inner_text()
    assert f"{8 * len(data) / 451 / 300:.4f}" in facts
    assert "451 × 300 pixels" in facts
    with page.page.expect_download() as started:
        page.page.get_by_role("link", name="Download as PNG").click()
    assert started.value.suggested_filename == "chelsea_q45.5.png"
    found = np.asarray(Image.open(io.BytesIO(Path(started.value.path()).read_bytes())).convert("RGB"), float)
    expected = np.asarray(glc.load(SMALL, "cpu").decompress(data), float)
    # 45 dB at least.
    assert np.square(found - expected).mean() < 255**2 / 10**4.5


def changed(offset: int, new: bytes) -> bytes:
    """Return the file with other bytes and the right checksum."""
    data = CHELSEA.read_bytes()
    body = data[:offset] + new + data[offset + len(new) : -4]
    return body + zlib.crc32(body).to_bytes(4, "little")


ERRORS = {
    "cut": (CHELSEA.read_bytes()[:-9], "corrupt or truncated: the checksum does not match"),
    "noise": (changed(14, bytes(range(1, 60))), "corrupt: "),
    "other": (
        changed(4, b"\1\2\3\4"),
        "encoded with other weights (fingerprint 01020304); this page has small "
        f"({CHELSEA.read_bytes()[4:8].hex()})",
    ),
    "large": (changed(8, b"\xff\x0f\xff\x0f"), "too large: 4096 x 4096 pixels, the limit is 4.0 million"),
    "text": (b"no file of ours", "not a .glc file"),
}


def test_files_that_cannot_be_decoded_end_in_one_line(page: Watched) -> None:
    for name, (data, message) in ERRORS.items():
        file = {"name": f"{name}.glc", "mimeType": "application/octet-stream", "buffer": data}
        page.page.locator("#choose").set_input_files([file])  # type: ignore[list-item]
        error = page.page.get_by_role("alert").filter(has_text=f"{name}.glc: {message}")
        error.wait_for()
        assert "\n" not in error.inner_text()
        assert not page.page.locator("#result").is_visible()

"""The folder of the page that decodes in a browser, without a browser."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import glc
from glc import pretrained
from glc.app import decoder_page
from glc.app.decoder_page import write_page
from glc.errors import WeightsError
from tests.codec import reference_decoder as reference
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.codec.reference_weights import Weights

SMALL = Path(pretrained.__path__[0]) / "small.safetensors"
FLOWER = Path(__file__).parents[1] / "expected" / "small" / "flower_q100.glc"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_page, "has_runtime", lambda: True)


def run(folder: Path, graph: str, weights: bytes, **inputs: np.ndarray) -> np.ndarray:
    """Run a graph whose weights are in a file."""
    options = onnxruntime.SessionOptions()
    options.add_external_initializers_from_files_in_memory(["weights"], [weights], [len(weights)])
    model = (folder / "models" / graph).read_bytes()
    return onnxruntime.InferenceSession(model, options).run(None, inputs)[0]


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_graphs_compute_the_image_from_the_weights_file(tmp_path: Path, dtype: str) -> None:
    path = fixed_codec_weights(tmp_path / "mine.safetensors") if dtype == "F32" else SMALL
    codec = glc.load(path, "cpu")
    data = codec.compress(fixed_image(70, 100), 60) if dtype == "F32" else FLOWER.read_bytes()

    assert write_page(tmp_path / "page", [path]) == [path.stem]
    (entry,) = json.loads((tmp_path / "page" / "models" / "index.json").read_text())
    raw = (tmp_path / "page" / "models" / entry["weights"]).read_bytes()
    # What the fingerprint covers is there, and no more.
    weights = Weights.read(tmp_path / "page" / "models" / entry["weights"])
    assert weights.fingerprint == entry["fingerprint"] == codec.weights.fingerprint
    assert {kind for kind, _, _ in weights.tensors.values()} >= {dtype}
    assert not [name for name in weights.tensors if name.startswith(("encoder.", "coder.analysis."))]

    header = reference.parse(data)
    y_hat = np.ldexp(reference.decode(data, weights).y_hat.astype(np.float64), -24).astype(np.float32)
    rate = np.array([header.rate_index / 4096], np.float32)
    latent = run(tmp_path / "page", entry["graphs"]["synthesis"], raw, y_hat=y_hat[None], rate=rate)
    x_hat = run(tmp_path / "page", entry["graphs"]["decoder"], raw, l_hat=latent)
    pixels = np.rint((x_hat[0, :, : header.height, : header.width].transpose(1, 2, 0) + 1) * 127.5)
    expected = np.asarray(codec.decompress(data), np.float32)
    assert np.abs(pixels.clip(0, 255) - expected).max() <= 1


@pytest.mark.usefixtures("runtime")
def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no model 'none'"):
        write_page(tmp_path / "page", ["none"])


def test_without_the_runtime_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_page, "RUNTIME", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="ONNX Runtime Web is missing; `make web`"):
        write_page(tmp_path / "page", ["small"])
    assert not (tmp_path / "page").exists()

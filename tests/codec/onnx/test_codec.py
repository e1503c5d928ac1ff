"""The codec without PyTorch reads and writes the same files as the codec with it."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glc
from glc.codec import bitstream
from glc.codec.onnx.codec import OnnxCodec, load_onnx
from glc.codec.onnx.weights import read_arrays
from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from glc.errors import MemoryLimitError
from tests.codec.fixed_model import fixed_image
from tests.codec.test_golden import EXPECTED, MODELS
from tests.codec.variants import VARIANTS, Variants
from tests.programs import fresh, load_script

digest = load_script("ship_model").digest
SMALL = json.loads((EXPECTED / "small" / "golden.json").read_text())["files"]
Pair = tuple[OnnxCodec, Any]
WithoutTorch = Callable[[str], OnnxCodec]


@pytest.fixture(scope="session")
def without_torch(variants: Variants) -> WithoutTorch:
    made: dict[str, OnnxCodec] = {}

    def get(variant: str) -> OnnxCodec:
        if variant not in made:
            made[variant] = load_onnx(variants.weights(variant))
        return made[variant]

    return get


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest, variants: Variants, without_torch: WithoutTorch) -> Pair:
    """Return a codec of each kind without PyTorch and with it."""
    return without_torch(request.param), variants.codec(request.param)


def psnr(a: Any, b: Any) -> float:
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("file", MODELS)
def test_golden_files_decode_to_the_same_integers(without_torch: WithoutTorch, file: str) -> None:
    codec, data = without_torch(MODELS[file]), (EXPECTED / file).read_bytes()
    symbols = codec.symbols(data)
    assert digest(symbols) == json.loads((EXPECTED / "golden.json").read_text())["symbols"][file]
    assert isinstance(symbols.y, np.ndarray)
    header, _ = bitstream.unpack(data)
    assert codec.from_symbols(symbols, (header.height, header.width), header.rate_index) == data


def test_golden_files_of_the_bundled_codec_decode_to_the_same_integers() -> None:
    codec, other = load_onnx(), glc.load(device="cpu", backend="torch", precision="float32")
    for file, expected in SMALL.items():
        data = (EXPECTED / "small" / file).read_bytes()
        symbols = codec.symbols(data)
        assert digest(symbols) == expected["symbols"]
        header, _ = bitstream.unpack(data)
        assert codec.from_symbols(symbols, (header.height, header.width), header.rate_index) == data
        if file.startswith("flower"):
            assert psnr(codec.decompress(data), other.decompress(data)) > 50


@pytest.mark.parametrize("quality", [0, 100])
def test_files_and_images_equal_those_with_pytorch(pair: Pair, quality: float) -> None:
    for size in ((67, 130), (1, 1)):
        image = fixed_image(*size)
        data = pair[0].compress(image, quality)
        assert data == pair[1].compress(image, quality)  # no value of this image is that close to a rounding
        images = [codec.decompress(data) for codec in pair]
        assert images[0].size == images[1].size == size[::-1]
        assert psnr(*images) > 50
        assert pair[0].symbols(data) == pair[1].symbols(data)


def test_targets_batches_and_tensors_equal_those_with_pytorch(pair: Pair) -> None:
    images = [fixed_image(40, 60, seed) for seed in range(2)]
    files = pair[0].compress_batch(images, 100)
    assert files == pair[1].compress_batch(images, 100)
    decoded = [codec.decompress_batch(files) for codec in pair]
    assert all(psnr(*both) > 50 for both in zip(*decoded, strict=True))
    tensor = torch.from_numpy(images[0]).permute(2, 0, 1) / 255
    assert pair[0].compress(tensor, 0) == pair[1].compress(tensor, 0)
    size = len(files[0]) - 2
    with pytest.warns() if pair[0]._unit > 1 else pytest.MonkeyPatch.context():
        made = pair[0].compress(images[0], target_size=size)
    assert len(made) <= size
    assert pair[0].quality_of(pair[0].rate_index(50)) == pair[1].quality_of(pair[1].rate_index(50))
    with pytest.raises(glc.TargetError) as caught:
        pair[0].compress(images[0], target_size=10)
    with pytest.raises(glc.TargetError) as expected:
        pair[1].compress(images[0], target_size=10)
    assert str(caught.value) == str(expected.value)


def test_image_of_z_alone_is_that_of_pytorch(variants: Variants, without_torch: WithoutTorch) -> None:
    data = variants.codec("categorical").compress(fixed_image(64, 96), 50)
    images = [codec.decode_z(data) for codec in (without_torch("categorical"), variants.codec("categorical"))]
    assert psnr(*images) > 40  # PyTorch predicts it in floating point
    with pytest.raises(ValueError, match="no hyper-latent"):
        without_torch("indices_map").decode_z((EXPECTED / "indices_map_1x1_q41.7.glc").read_bytes())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "another format": lambda data: b"PNG" + data[3:],
    "newer": lambda data: data[:3] + b"\2" + data[4:],
    "half": lambda data: data[: len(data) // 2],
    "header only": lambda data: data[:14],
    "flipped": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "other weights": lambda data: bitstream.pack(
        bitstream.Header(fingerprint=b"abcd", width=40, height=40, rate_index=0), data[14:-4]
    ),
    "no such rate": lambda data: bitstream.pack(
        bitstream.Header(fingerprint=data[4:8], width=40, height=40, rate_index=3 * 4096 + 1), data[14:-4]
    ),
    "payload of another": lambda data: bitstream.pack(
        bitstream.Header(fingerprint=data[4:8], width=40, height=40, rate_index=0), bytes(range(1, 90))
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_corrupt_files_raise_the_same_errors(pair: Pair, damage: str) -> None:
    data = DAMAGES[damage](pair[1].compress(fixed_image(40, 40), 100))
    found = []
    for codec in pair:
        with pytest.raises(glc.BitstreamError) as caught:
            codec.decompress(data)
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]


def test_large_images_are_computed_without_the_arena(
    variants: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = fixed_image(64, 96)
    codec = load_onnx(variants.weights("categorical"))
    data = codec.compress(image)
    expected = np.asarray(codec.decompress(data))
    monkeypatch.setattr("glc.codec.onnx.runtime._ARENA_PIXELS", 64 * 96 - 1)
    sessions = codec._sessions._sessions
    assert codec.compress(image) == data
    assert np.array_equal(np.asarray(codec.decompress(data)), expected)
    assert {("encoder", False), ("decoder", False), ("encoder", True), ("decoder", True)} <= sessions.keys()


def test_size_limit(pair: Pair) -> None:
    data = pair[1].compress(fixed_image(40, 40))
    with pytest.raises(glc.SizeLimitError, match="40 x 40 pixels, above the limit of 100"):
        pair[0].decompress(data, max_pixels=100)


def test_what_only_pytorch_can_do_says_so(variants: Variants, tmp_path: Path) -> None:
    file = variants.weights("categorical")
    codec = load_onnx(file, memory=50_000_000)
    with pytest.raises(AttributeError, match=r"pip install 'glc-codec\[torch\]'"):
        _ = codec.model
    assert not hasattr(codec, "model")
    with pytest.raises(MemoryLimitError, match=r"needs .* GB .* use the backend torch \(pip install"):
        codec.compress(fixed_image(512, 512))
    with pytest.raises(ValueError, match="precision bfloat16: the backend onnx computes in float32"):
        load_onnx(file, precision="bfloat16")
    with pytest.raises(ValueError, match="latent optimisation needs PyTorch"):
        load_onnx(file).compress(fixed_image(8, 8), optimize_latent=lambda *_: _)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for trained in (tmp_path / "run", tmp_path / "last.ckpt"):
        with pytest.raises(glc.BackendError, match="a checkpoint; export it with `glc export`"):
            load_onnx(trained)


def test_variants_replace_encoder_and_decoder(variants: Variants, tmp_path: Path) -> None:
    weights, other = (read_weights(variants.weights("categorical", seed)) for seed in (0, 1))
    files = {}
    for kind in ("encoder", "decoder"):
        files[kind] = tmp_path / f"{kind}.safetensors"
        state = getattr(other.model, kind).state_dict()
        save_variant(files[kind], kind, state, weights.description[kind], weights.fingerprint)  # type: ignore[arg-type]
    image, file = fixed_image(40, 40), variants.weights("categorical")
    codecs = [glc.load(file, "cpu", backend=backend, **files) for backend in ("onnx", "torch")]
    data = codecs[0].compress(image)
    assert data == codecs[1].compress(image) != variants.codec("categorical").compress(image)
    assert psnr(*(codec.decompress(data) for codec in codecs)) > 50
    assert psnr(codecs[0].decompress(data), variants.codec("categorical").decompress(data)) < 40
    with pytest.raises(glc.WeightsError, match="is not an encoder but one decoder: use it with --decoder"):
        load_onnx(file, encoder=files["decoder"])
    with pytest.raises(glc.WeightsError, match="encoder for the codec"):
        load_onnx(variants.weights("factorized"), encoder=files["encoder"])


def test_corrupt_weights_are_refused(variants: Variants, tmp_path: Path) -> None:
    data = bytearray(variants.weights("categorical").read_bytes())
    data[-3] ^= 1
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(glc.WeightsError, match="corrupt: the content does not match its"):
        load_onnx(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(data[:1000])
    with pytest.raises(glc.WeightsError, match="not a safetensors file"):
        load_onnx(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        (
            "decoder.blocks.2.conv1.weight",
            None,
            "do not fit their description: 'decoder.blocks.2.conv1.weight'",
        ),
        ("coder.context.shared.0.1.expand.weight", None, "'coder.context.shared.0.1.expand' is missing"),
        ("coder.context.reduction.weight", 1e9, "cannot encode files: coder.context.reduction has weights"),
        ("encoder.blocks.1.weight", (8, 5, 3, 3), "encoder: [ONNXRuntimeError]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    name: str, change: Any, complaint: str, variants: Variants
) -> None:
    weights = read_arrays(variants.weights("categorical"))
    tensors = {key: array for key, array in weights.tensors.items() if key != name or change is not None}
    if isinstance(change, tuple):
        tensors[name] = np.zeros(change, np.float32)
    elif change is not None:
        tensors[name] = tensors[name] + np.float32(change)
    # The runtime checks shapes when it runs.
    with pytest.raises(RuntimeError if isinstance(change, tuple) else glc.WeightsError) as caught:
        OnnxCodec(replace(weights, tensors=tensors)).compress(fixed_image(8, 8))
    assert complaint in str(caught.value)
    assert weights.source in str(caught.value)


PROGRAM = """
import sys
from glc.cli import main
try:
    main(sys.argv[1:], prog_name="glc")
finally:
    print([name for name in ("torch", "onnx", "onnxruntime") if name in sys.modules])
"""


def test_commands_on_one_image_do_not_import_torch(tmp_path: Path) -> None:
    from PIL import Image

    photo, file = tmp_path / "photo.png", tmp_path / "photo.glc"
    Image.fromarray(fixed_image(64, 64)).save(photo)
    for words in (["compress", photo], ["decompress", file, "-o", tmp_path / "back.png"]):
        done = fresh(["-c", PROGRAM, *map(str, words)])
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "['onnxruntime']"
    for words in (["info", file], ["models"], ["--help"], ["compress", "--help"]):
        done = fresh(["-c", PROGRAM, *map(str, words)])
        assert done.stdout.splitlines()[-1] == "[]"
    assert "torch" in sys.modules  # of this process

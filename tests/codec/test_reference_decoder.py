"""The codec agrees with a second decoder, written from `docs/bitstream.md` alone."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import glc
from glc.models.autoencoder import Decoder
from tests.codec import reference_decoder as reference
from tests.codec.fixed_model import fixed_image
from tests.codec.reference_image import Drawing
from tests.codec.reference_networks import latents
from tests.codec.reference_weights import Table, Weights
from tests.codec.variants import VARIANTS, WITH_Y, Variants

GOLDEN = sorted((Path(__file__).parents[1] / "expected").glob("*.glc"))
Pair = tuple[glc.Codec, Weights]
Intervals = list[tuple[int, int]]


@pytest.fixture(scope="module")
def pairs(variants: Variants) -> Callable[..., Pair]:
    """The codec of a variant and seed, and its weights as the second decoder reads them."""
    read = cache(Weights.read)
    return lambda name, seed=0: (variants.codec(name, seed), read(variants.weights(name, seed)))


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest, pairs: Callable[..., Pair]) -> Pair:
    return pairs(request.param)


def assert_same(pair: Pair, data: bytes) -> reference.Decoded:
    """Compare the integers that both decoders find in a file."""
    codec, weights = pair
    symbols, found = codec.symbols(data), reference.decode(data, weights)
    np.testing.assert_array_equal(symbols.y[0].numpy(), found.y)
    if found.z is None:
        assert symbols.z.numel() == 0
    else:
        np.testing.assert_array_equal(symbols.z[0].numpy(), found.z)
    return found


def outcome(pair: Pair, data: bytes) -> str:
    """Return the error that both decoders end in, or nothing."""
    codec, weights = pair
    found = expected = ""
    try:
        reference.decode(data, weights)
    except reference.Refused as error:
        expected = error.name
    try:
        codec.symbols(data)
    except glc.BitstreamError as error:
        found = type(error).__name__
    assert found == expected
    return found


def with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


class Recorder(reference.Stack):
    """Notes the interval of every symbol that it decodes."""

    def __init__(self, payload: bytes) -> None:
        self.intervals: Intervals = []
        super().__init__(payload)

    def _take(self, start: int, frequency: int) -> None:
        self.intervals.append((start, frequency))
        super()._take(start, frequency)


def intervals_of(data: bytes, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> Intervals:
    """Return the intervals of all symbols in a file, in the order of decoding."""
    made: list[Recorder] = []
    with monkeypatch.context() as patch:
        patch.setattr(reference, "Stack", lambda payload: made.append(Recorder(payload)) or made[-1])
        reference.decode(data, weights)
    return made[0].intervals


def encode(intervals: Intervals) -> bytes:
    """Return the payload of symbols by their intervals (part 5.1)."""
    x, words = 0, []
    for start, frequency in reversed(intervals):
        if x >> 40 >= frequency:
            words.append(x % (1 << 32))
            x >>= 32
        x = (x // frequency << 24) + start + x % frequency
    words += [x % (1 << 32), x >> 32]
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0")


# The integers.


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_reference_decoder_agrees_on_golden_files(pairs: Any, file: Path) -> None:
    name = next((name for name in VARIANTS if file.stem.startswith(name)), "categorical")
    assert_same(pairs(name), file.read_bytes())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("size", "quality"), [((1, 1), 50), ((32, 32), 0), ((33, 64), 100), ((70, 45), 12.5), ((15, 97), 66.6)]
)
def test_reference_decoder_agrees_on_an_image(
    pairs: Any, name: str, size: tuple[int, int], quality: float
) -> None:
    pair = pairs(name, seed=1)
    assert_same(pair, pair[0].compress(fixed_image(*size, seed=1), quality))


@pytest.mark.parametrize("spread", [2, 40, 5000])
@pytest.mark.parametrize("pair", WITH_Y, indirect=True)
def test_arbitrary_integers_round_trip(pair: Pair, spread: int) -> None:
    codec, weights = pair
    rng = np.random.default_rng(spread)

    def integers(*shape: int) -> np.ndarray:
        return np.clip(np.rint(rng.standard_cauchy(shape) * spread), -32767, 32767).astype(np.int64)

    y = integers(16, 8, 12)
    z = integers(16, 2, 3) if weights.factorized else rng.integers(0, 32, (2, 3))
    symbols = glc.Symbols(torch.from_numpy(z)[None].int(), torch.from_numpy(y)[None].int())
    found = assert_same(pair, codec.from_symbols(symbols, (64, 96), 0))
    np.testing.assert_array_equal(found.y, y)
    np.testing.assert_array_equal(found.z, z)


@pytest.mark.parametrize("pair", WITH_Y, indirect=True)
def test_empty_payload_decodes(pair: Pair) -> None:
    header = pair[0].compress(fixed_image(40, 40), 50)[:14]
    assert assert_same(pair, with_checksum(header)).y.max() < 0  # the lowest value of each table


def test_payload_of_given_integers_is_unique(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, weights = pair
    data = codec.compress(fixed_image(67, 130), 80)
    assert encode(intervals_of(data, weights, monkeypatch)) == data[14:-4]


# The networks after the integers.


@contextmanager
def inputs_of(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the first input of a module."""
    found: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("pair", ["categorical", "factorized"], indirect=True)
@pytest.mark.parametrize("quality", [0, 41.7, 100])
def test_y_hat_and_the_latent_agree(pair: Pair, quality: float) -> None:
    codec, weights = pair
    data = codec.compress(fixed_image(67, 100), quality)
    with inputs_of(codec.model.coder.synthesis) as y_hats:
        latent = codec.entropy_decode([data])[0].latent_hat[0]
    decoded = reference.decode(data, weights)
    np.testing.assert_array_equal(y_hats[0].numpy(), np.ldexp(decoded.y_hat, -24).astype(np.float32))
    expected = latents(weights, decoded.y, decoded.y_hat, reference.parse(data).rate_index)
    np.testing.assert_allclose(latent.numpy(), expected, atol=1e-5 * np.abs(expected).max())


def test_latent_of_indices_is_their_codewords(pairs: Any) -> None:
    codec, weights = pairs("indices_map")
    data = codec.compress(fixed_image(67, 100), 41.7)
    decoded = reference.decode(data, weights)
    expected = latents(weights, decoded.y, None, reference.parse(data).rate_index)
    np.testing.assert_array_equal(codec.entropy_decode([data])[0].latent_hat[0].numpy(), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "group", "stem": 1, "window": 2, "channels": 48},
        {"norm": "pixel", "stem": 4, "level_attention": False, "fine_blocks": 2, "fine_channels": 16},
        {"norm": "none", "stem": 2, "window": None, "out_activation": False, "projection": False},
        {"stem": 2, "fine_blocks": 1},
    ],
    ids=str,
)
def test_reference_image_agrees(options: dict[str, Any]) -> None:
    description = {"latent_channels": 6, "channels": 8, "multipliers": [1, 2], "num_blocks": 2, **options}
    decoder = Decoder(**description).eval().double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    tensors = {f"decoder.{name}": tensor.numpy() for name, tensor in decoder.state_dict().items()}
    latent = torch.randn(6, 3, 5, dtype=torch.float64)
    with torch.inference_mode():
        expected = decoder(latent[None])[0].numpy()
    found = Drawing(SimpleNamespace(tensors=tensors, real=tensors.__getitem__), description)(latent.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


# Files that must be rejected.


def changed(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """Return what replaces bytes and repairs the checksum."""
    return lambda data: with_checksum(data[:offset] + new + data[offset + len(new) : -4])


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "NotGlcError"),
    "one other byte": (lambda data: b"P", "NotGlcError"),
    "other magic": (changed(2, b"X"), "NotGlcError"),
    "other magic, short": (lambda data: b"GX", "NotGlcError"),
    "two bytes": (lambda data: data[:2], "TruncatedError"),
    "magic alone": (lambda data: data[:3], "TruncatedError"),
    "version 0": (changed(3, b"\0"), "CorruptFileError"),
    "version 0, short": (lambda data: b"GLC\0", "CorruptFileError"),
    "version 2": (changed(3, b"\2"), "NewerVersionError"),
    "version 255, short": (lambda data: b"GLC\xff", "NewerVersionError"),
    "17 bytes": (lambda data: data[:17], "TruncatedError"),
    "cut": (lambda data: data[:-1], "CorruptFileError"),
    "a further byte": (lambda data: data + b"\0", "CorruptFileError"),
    "other checksum": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "CorruptFileError"),
    "too large": (changed(8, b"\xff\xff\xff\xff"), "SizeLimitError"),
    "too large, other weights": (changed(4, b"\0\0\0\0\xff\xff\xff\xff"), "SizeLimitError"),
    "zero at the end": (lambda data: with_checksum(data[:-4] + b"\0"), "CorruptFileError"),
    "zero at the end, too large": (changed(8, b"\xff\xff\xff\xff\0\0\0"), "SizeLimitError"),
    "zero at the end, other weights": (
        lambda data: with_checksum(b"GLC\1" + data[4:-4] + b"\0"),
        "CorruptFileError",
    ),
    "other weights": (changed(4, b"\0\0\0\0"), "WrongWeightsError"),
    "other weights and rate": (changed(4, bytes(4) + b"\0\0\0\0\xff\xff"), "WrongWeightsError"),
    "rate above the last": (changed(12, (3 * 4096 + 1).to_bytes(2, "little")), "CorruptFileError"),
    "highest rate": (changed(12, b"\xff\xff"), "CorruptFileError"),
    "smaller size": (changed(8, b"\0\0\0\0"), "CorruptFileError"),
    "payload of another": (lambda data: with_checksum(data[:14] + bytes(range(1, 90))), "CorruptFileError"),
}


@pytest.mark.parametrize("pair", ["categorical", "factorized", "indices_map"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_both_decoders_raise_the_same_error(pair: Pair, damage: str) -> None:
    change, expected = DAMAGES[damage]
    assert outcome(pair, change(pair[0].compress(fixed_image(40, 40), 100))) == expected


@pytest.mark.parametrize(("name", "expected"), [("indices_map", "CorruptFileError"), ("categorical", "")])
def test_fractional_rates_need_a_transform_coder(pairs: Any, name: str, expected: str) -> None:
    pair = pairs(name)
    assert outcome(pair, changed(12, b"\1\x10")(pair[0].compress(fixed_image(40, 40), 40))) == expected


def test_both_decoders_agree_on_random_payloads(pair: Pair) -> None:
    rng = np.random.default_rng(0)
    header = pair[0].compress(fixed_image(1, 1), 50)[:14]
    outcomes = []
    for length in (1, 2, 3, 4, 5, 8, 9, 12):
        data = with_checksum(header + rng.bytes(length - 1) + b"\1")
        outcomes.append(outcome(pair, data))
        if not outcomes[-1]:
            assert_same(pair, data)
    assert "CorruptFileError" in outcomes


@pytest.mark.parametrize("part", ["z", "y"])
def test_largest_escape_is_32767(pairs: Any, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next value's file differs by one interval, moved on as far as from the value before."""
    codec, weights = pairs("factorized")
    symbols = glc.Symbols(torch.zeros(1, 16, 1, 1).int(), torch.zeros(1, 16, 4, 4).int())
    # Column 1 of group 0 comes in the last step, so that no class depends on it.
    place = (0, 0, 0, 0) if part == "z" else (0, 0, 0, 1)
    found = []
    for value in (32766, 32767):
        getattr(symbols, part)[place] = value
        data = codec.from_symbols(symbols, (32, 32), 0)
        assert getattr(assert_same((codec, weights), data), part)[place[1:]] == value
        found.append(intervals_of(data, weights, monkeypatch))
    (moved,) = (k for k, (a, b) in enumerate(zip(*found, strict=True)) if a != b)
    (start, frequency), before = found[1][moved], found[0][moved][0]
    found[1][moved] = (2 * start - before, frequency)
    assert outcome((codec, weights), with_checksum(data[:14] + encode(found[1]))) == "CorruptFileError"


# The weights and the document's own numbers.


def test_fingerprints_match_the_document(pair: Pair) -> None:
    codec, weights = pair
    assert codec.fingerprint == bytes.fromhex(weights.fingerprint)[:4]
    assert weights.encoder_fingerprint == weights.metadata["encoder_fingerprint"]


def test_worked_example_of_a_table() -> None:
    text = "474c4301 01234567 ff02 ff01 0018 0000b0e00e 1cc65e27"
    file = reference.parse(bytes.fromhex(text))
    assert (file.width, file.height, file.rate_index) == (768, 512, 6144)
    stack = reference.Stack(file.payload)
    table = Table(-1, [3145728, 8388608, 3145728, 2097152])
    assert reference.decode_integers(stack, np.zeros(3, np.int64), [table]).tolist() == [1, -1, -7]
    stack.finish()


def test_worked_example_of_indices() -> None:
    stack = Recorder(bytes.fromhex("9000fef63d00000210"))
    found = reference.decode_indices(stack, (4,), 1_000_000, [])
    assert found.tolist() == [3, 999_999, 123_456, 777_777]
    stack.finish()
    assert encode(stack.intervals).hex() == "9000fef63d00000210"

"""Any input gives a typed error, or an image of its header's size. `test_bitstream.py` tests the checksum."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import glc
from glc.codec import bitstream
from glc.codec.entropy.ans import SYMBOL_LIMIT
from glc.models.coder import IndicesMapCoder
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import WITH_Y


def outcome(codec: glc.Codec, data: bytes) -> str:
    """Decompress; return the error's type, or check the image. No other exception passes."""
    try:
        image = codec.decompress(data)
    except glc.BitstreamError as error:
        return type(error).__name__ if str(error) else "no message"
    header, _ = bitstream.unpack(data)
    assert image.size == (header.width, header.height)
    return "image"


def test_every_truncation_is_an_error(codec: glc.Codec) -> None:
    data = codec.compress(fixed_image(40, 40), 100)
    assert outcome(codec, data) == "image"
    kinds = {outcome(codec, data[:length]) for length in range(len(data))}
    assert kinds == {"NotGlcError", "TruncatedError", "CorruptFileError"}


def crafted(codec: glc.Codec, count: int) -> Iterator[bytes]:
    """Yield files with a valid checksum that no encoder wrote."""
    chance = random.Random(0)
    header, payload = bitstream.unpack(codec.compress(fixed_image(40, 33), 50))
    top = (codec.model.num_rates - 1) * bitstream.RATE_ONE

    def flip(payload: bytes) -> bytes:
        changed = bytearray(payload)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        return bytes(changed)

    edits: list[Callable[[bytes], bytes]] = [
        flip,
        lambda p: p[: chance.randrange(len(p))],
        lambda p: p[chance.randrange(1, len(p)) :],
        lambda p: p + chance.randbytes(chance.randrange(1, 9)),
        lambda p: chance.randbytes(chance.choice((1, 4, 7, 8, 33, len(p)))),
        lambda p: b"\xff" * chance.choice((1, 8, 64, len(p))),
        lambda p: b"",
        lambda p: p,
    ]
    for k in range(count):
        changes: dict[str, Any] = {}
        if k % 2:
            changes["width"] = chance.choice((1, 2, header.width, 65, chance.randrange(1, 200)))
            changes["height"] = chance.choice((1, 2, header.height, 65, chance.randrange(1, 200)))
        if k % 3 == 0:
            rates = (0, 1, top, bitstream.RATE_ONE, top + 1, 0xFFFF, chance.randrange(top))
            changes["rate_index"] = chance.choice(rates)
        yield bitstream.pack(dataclasses.replace(header, **changes), edits[k % len(edits)](payload))


@pytest.mark.timeout(60)
def test_corrupt_files_with_a_valid_checksum_raise_or_decode(codec: glc.Codec) -> None:
    found = Counter(outcome(codec, data) for data in crafted(codec, 96))
    # Both happen: a payload that decodes by chance, and one that does not.
    assert found["CorruptFileError"] > 10
    assert found["image"] > 0
    assert found.keys() <= {"CorruptFileError", "image"}


def test_symbols_and_decode_z_handle_corrupt_files(codec: glc.Codec) -> None:
    reads: list[Callable[[bytes], Any]] = [codec.symbols]
    if not isinstance(codec.model.coder, IndicesMapCoder):
        reads.append(codec.decode_z)
    refused = Counter[str]()
    for data in crafted(codec, 24):
        for read in reads:
            try:
                read(data)
            except glc.BitstreamError:
                refused[read.__name__] += 1
    assert 0 < refused["symbols"] < 24


# Indices-map coding has a code for every index.
@pytest.mark.parametrize("codec", WITH_Y, indirect=True)
def test_non_finite_images_raise_CorruptFileError(codec: glc.Codec) -> None:
    symbols = codec.symbols(codec.compress(fixed_image(64, 64), 100))
    # Networks of gates raise such values to powers that float32 cannot hold.
    huge = glc.Symbols(symbols.z, torch.full_like(symbols.y, SYMBOL_LIMIT))
    data = codec.from_symbols(huge, (64, 64), codec.rate_index(100))
    assert codec.symbols(data) == huge
    with pytest.raises(glc.CorruptFileError):
        codec.decompress(data)


def test_one_corrupt_file_fails_its_batch(codec: glc.Codec) -> None:
    good = codec.compress(fixed_image(32, 32), 0)
    with pytest.raises(glc.CorruptFileError):
        codec.decompress_batch([good, good[:-1] + bytes([good[-1] ^ 1]), good])

"""Changed `.glc` files raise a typed error, within limits of time and memory.

Files of several sizes and qualities are changed by flips, insertions, deletions, splices, truncations,
extensions and edits of the header. Most keep their checksum and must be refused; the others get a new one, so
that the decoder is reached, and may decode to an image of the size in their header.
"""

import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence

import glc
from glc.codec import bitstream
from tests.codec.fixed_model import fixed_image
from tests.stress.harness import Stress

SIZES = ((1, 1), (40, 33), (64, 64), (130, 67), (1, 200))
"""Height and width of the images in the source files."""
MAX_PIXELS = 1 << 14
"""Limit of the decoder: a header with a new checksum may name any size below it."""
REPAIRED = 0.01
MOST_SECONDS = 1.0
MOST_MIB = 256


def files(codec: glc.Codec) -> list[bytes]:
    """Return valid files."""
    return [
        codec.compress(fixed_image(*size, seed), quality)
        for seed, size in enumerate(SIZES)
        for quality in (0, 60, 100)
    ]


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def insert(data: bytearray, chance: random.Random) -> None:
    at = chance.randint(0, len(data))
    data[at:at] = chance.randbytes(chance.choice((1, 4, 16)))


def delete(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 4, 16))]


def overwrite(data: bytearray, chance: random.Random) -> None:
    length = chance.choice((1, 4, 16, 64))
    at = chance.randrange(len(data))
    data[at : at + length] = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def extend(data: bytearray, chance: random.Random) -> None:
    data += chance.choice((bytes(chance.randint(1, 9)), chance.randbytes(chance.randint(1, 200))))


def edit_header(data: bytearray, chance: random.Random) -> None:
    """Replace one field: version, fingerprint, width, height or rate."""
    at, form = chance.choice(((3, "B"), (4, "I"), (8, "H"), (10, "H"), (12, "H")))
    top = (1 << 8 * struct.calcsize(form)) - 1
    if len(data) >= at + struct.calcsize(form):
        value = chance.choice((0, 1, 63, 255 & top, top, chance.randint(0, top)))
        struct.pack_into(f"<{form}", data, at, value)


def repeat(data: bytearray, chance: random.Random) -> None:
    """Write a part of the file twice, as a broken transfer does."""
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.choice((1, 4, 64))]


def swap(data: bytearray, chance: random.Random) -> None:
    """Exchange two parts."""
    length = chance.choice((1, 4, 16))
    first, second = sorted(chance.randrange(len(data)) for _ in range(2))
    if first + length <= second:
        data[first : first + length], data[second : second + length] = (
            data[second : second + length],
            data[first : first + length],
        )


EDITS = (repeat, swap, flip, insert, delete, overwrite, truncate, extend, edit_header)


def mutant(sources: Sequence[bytes], chance: random.Random, repair: bool) -> bytes:
    """Return a changed file."""
    source = chance.choice(sources)
    data = bytearray(source)
    if chance.random() < 0.1:
        other = chance.choice(sources)
        data = data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]
    else:
        for edit in chance.choices(EDITS, k=chance.choice((1, 1, 1, 3))):
            if data:
                edit(data, chance)
    if repair and len(data) >= bitstream.OVERHEAD:
        # Magic and fingerprint are restored too; otherwise nearly all files would be refused by them.
        data[:4], data[4:8] = source[:4], source[4:8]
        data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    return bytes(data)


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def judge(codec: glc.Codec, data: bytes) -> str:
    """Return `image` or the type of the bitstream error; other exceptions propagate."""
    try:
        image = codec.decompress(data, max_pixels=MAX_PIXELS)
    except glc.BitstreamError as error:
        return type(error).__name__ if str(error) else "no message"
    header, _ = bitstream.unpack(data, MAX_PIXELS)
    assert image.size == (header.width, header.height)
    return "image"


def test_changed_files_raise_typed_errors(stress: Stress) -> None:
    chance = stress.random()
    codec = glc.load(stress.weights, stress.device)
    sources = files(codec)
    # Decode the largest padded image first, so that its memory does not count as growth.
    widest = bitstream.Header(fingerprint=codec.fingerprint, width=MAX_PIXELS, height=1, rate_index=0)
    for data in (*sources, bitstream.pack(widest, b"")):
        judge(codec, data)
    before = peak_mib()
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    rounds, repaired = stress.count(500, 100_000), REPAIRED if stress.long else 0.2
    for number in range(rounds):
        repair = chance.random() < repaired
        data = mutant(sources, chance, repair)
        while data in sources:
            data = mutant(sources, chance, repair)
        began = time.process_time()  # processor time: independent of other load
        try:
            found[repair][judge(codec, data)] += 1
        except Exception as error:
            raise AssertionError(f"case {number}, {data[:4096].hex()}") from error
        took = time.process_time() - began
        assert took < MOST_SECONDS, f"case {number} took {took:.2f} s: {data[:4096].hex()}"
    print(f"checksum kept: {dict(found[False])}; repaired: {dict(found[True])}")
    assert found[False]["image"] == found[False]["no message"] == found[True]["no message"] == 0
    assert found[False].total() + found[True].total() == rounds
    assert peak_mib() - before < MOST_MIB

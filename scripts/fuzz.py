"""Change `.glc` files at random and decompress them: each must end in a typed error, soon, in little memory.

    python scripts/fuzz.py --weights codec.safetensors --count 100000

Files of several sizes and qualities are changed by flips, insertions, deletions, splices, truncations,
extensions and edits of the header. Most keep the checksum that they have, and must be refused; a part gets a
new checksum, so that the decoder behind it is reached, and may give a picture of the size in its header.
Exits with 1 on any other exception, a picture that must not be, a case of more than a second, or memory that
grows beyond the limit. A case that never ends is stopped after a minute, with a traceback.
"""

import argparse
import collections
import faulthandler
import json
import random
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import glc
from glc.codec import bitstream
from glc.codec.weights.catalog import DEFAULT_MODEL

SIZES = ((1, 1), (40, 33), (64, 64), (130, 67), (1, 200))
"""Height and width of the pictures in the files that are changed."""
MAX_PIXELS = 1 << 14
"""Limit of the decoder: a header with a new checksum may name any size below it."""
SECOND = 1.0
HANG = 60
MUST_FAIL, MAY_DECODE = "kept", "repaired"


def files(codec: glc.Codec, chance: random.Random) -> list[bytes]:
    """Return valid files of noise and of slopes."""
    made = []
    for height, width in SIZES:
        for quality in (0, 60, 100):
            noise = np.frombuffer(chance.randbytes(height * width * 3), np.uint8).reshape(height, width, 3)
            slope = np.arange(width)[None, :, None] * 3 + np.arange(height)[:, None, None] * 2
            made.append(codec.compress((slope + noise % 32).astype(np.uint8), quality))
    return made


def flip(data: bytearray, chance: random.Random) -> None:
    """Flip one to eight bits."""
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def insert(data: bytearray, chance: random.Random) -> None:
    """Insert a few bytes."""
    at = chance.randint(0, len(data))
    data[at:at] = chance.randbytes(chance.choice((1, 4, 16)))


def delete(data: bytearray, chance: random.Random) -> None:
    """Delete a few bytes."""
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 4, 16))]


def overwrite(data: bytearray, chance: random.Random) -> None:
    """Replace a run by zeros, ones or noise."""
    length = chance.choice((1, 4, 16, 64))
    at = chance.randrange(len(data))
    run = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))
    data[at : at + length] = run


def truncate(data: bytearray, chance: random.Random) -> None:
    """Cut the end off."""
    del data[chance.randrange(len(data)) :]


def extend(data: bytearray, chance: random.Random) -> None:
    """Append bytes."""
    data += chance.choice((bytes(chance.randint(1, 9)), chance.randbytes(chance.randint(1, 200))))


def edit_header(data: bytearray, chance: random.Random) -> None:
    """Replace one field: version, fingerprint, a side or the rate."""
    at, form = chance.choice(((3, "B"), (4, "I"), (8, "H"), (10, "H"), (12, "H")))
    size = struct.calcsize(form)
    top = (1 << 8 * size) - 1
    if len(data) >= at + size:
        struct.pack_into(
            f"<{form}", data, at, chance.choice((0, 1, 63, 255 & top, top, chance.randint(0, top)))
        )


EDITS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip, insert, delete, overwrite, truncate, extend, edit_header),
)


def mutant(sources: Sequence[bytes], chance: random.Random, repair: bool) -> tuple[bytes, str]:
    """Return a changed file and the name of the change."""
    source = chance.choice(sources)
    data = bytearray(source)
    if chance.random() < 0.1:
        other = chance.choice(sources)
        name = "splice"
        data = data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]
    else:
        chosen = chance.choices(EDITS, k=chance.choice((1, 1, 1, 3)))
        name = chosen[0].__name__ if len(chosen) == 1 else "several"
        for edit in chosen:
            if data:
                edit(data, chance)
    if repair and len(data) >= bitstream.OVERHEAD:
        # The magic and the fingerprint are put back too, or hardly anything would get past them.
        data[:4], data[4:8] = source[:4], source[4:8]
        data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    return bytes(data), name


def resident() -> float:
    """Return the most memory that this process ever held, in MiB."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def judge(codec: glc.Codec, data: bytes, repaired: bool) -> tuple[str, str | None]:
    """Decompress; return what came of it, and what is wrong with that."""
    try:
        picture = codec.decompress(data, max_pixels=MAX_PIXELS)
    except glc.BitstreamError as error:
        return type(error).__name__, None
    except Exception as error:
        return type(error).__name__, f"{type(error).__name__}: {error}"
    header, _ = bitstream.unpack(data, MAX_PIXELS)
    if picture.size != (header.width, header.height):
        return "picture", f"a picture of {picture.size} where the header says {header}"
    return "picture", None if repaired else "a picture from a changed file"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Try the files and return the figures."""
    chance = random.Random(arguments.seed)
    codec = glc.load(arguments.weights, arguments.device)
    sources = files(codec, chance)
    valid = frozenset(sources)
    for data in sources:  # also lets torch allocate what it keeps
        codec.decompress(data)
    # What the largest picture takes once padded is no growth.
    widest = bitstream.Header(fingerprint=codec.fingerprint, width=MAX_PIXELS, height=1, rate=0)
    judge(codec, bitstream.pack(widest, b""), True)
    before, start = resident(), time.monotonic()
    outcomes: dict[str, collections.Counter[str]] = {
        kind: collections.Counter() for kind in (MUST_FAIL, MAY_DECODE)
    }
    edits: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, str]] = []
    slowest = slowest_wall = 0.0
    for number in range(arguments.count):
        repair = chance.random() < arguments.repaired
        data, edit = mutant(sources, chance, repair)
        while data in valid:
            data, edit = mutant(sources, chance, repair)
        faulthandler.dump_traceback_later(HANG, exit=True)
        # The processor's time: others may keep this machine busy.
        began, began_wall = time.process_time(), time.monotonic()
        outcome, wrong = judge(codec, data, repair)
        took = time.process_time() - began
        slowest, slowest_wall = max(slowest, took), max(slowest_wall, time.monotonic() - began_wall)
        faulthandler.cancel_dump_traceback_later()
        outcomes[MAY_DECODE if repair else MUST_FAIL][outcome] += 1
        edits[edit] += 1
        if wrong is None and took > SECOND:
            wrong = f"took {took:.2f} s"
        if wrong is not None:
            failures.append({"number": str(number), "edit": edit, "wrong": wrong, "file": data[:4096].hex()})
            print(f"case {number} ({edit}, {len(data)} bytes): {wrong}", file=sys.stderr)
    grown = resident() - before
    if grown > arguments.memory_limit:
        failures.append({"wrong": f"memory grew by {grown:.0f} MiB"})
    return {
        "cases": arguments.count,
        "failures": failures,
        "outcomes": {kind: dict(counts.most_common()) for kind, counts in outcomes.items()},
        "edits": dict(edits.most_common()),
        "files": {"count": len(sources), "bytes": [min(map(len, sources)), max(map(len, sources))]},
        "slowest_cpu_seconds": round(slowest, 3),
        "slowest_wall_seconds": round(slowest_wall, 3),
        "memory_growth_mib": round(grown, 1),
        "seconds": round(time.monotonic() - start, 1),
        "seed": arguments.seed,
        "torch": torch.__version__,
        "fingerprint": codec.weights.fingerprint,
    }


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights", default=DEFAULT_MODEL, help="weights file, or a model's name (%(default)s)"
    )
    parser.add_argument("--count", type=int, default=100_000, help="changed files (%(default)s)")
    parser.add_argument(
        "--repaired", type=float, default=0.01, help="part that gets a new checksum (%(default)s)"
    )
    parser.add_argument("--memory-limit", type=float, default=256, help="growth in MiB (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="folder for fuzz.json")
    arguments = parser.parse_args()
    try:
        figures = run(arguments)
    except glc.WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "fuzz.json").write_text(json.dumps(figures, indent=2) + "\n")
    for kind, counts in figures["outcomes"].items():
        print(f"checksum {kind}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(
        f"{figures['cases']} changed files in {figures['seconds']} s: {len(figures['failures'])} failures; "
        f"slowest {figures['slowest_cpu_seconds']} s, memory grew by {figures['memory_growth_mib']} MiB"
    )
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())

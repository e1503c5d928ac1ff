"""Decoded symbols equal the encoded ones; decoding depends on file and weights only."""

import random
from collections.abc import Iterator
from pathlib import Path

import glc
from glc.data.images import list_images, read_rgb
from glc.data.sources import sample_paths
from tests.stress.harness import Stress
from tests.stress.symbols import encoder_symbols

QUALITIES = (0.0, 17.3, 50.0, 81.9, 100.0)
LONGEST_CROP = 301


def boxes(paths: list[Path], complete: bool, chance: random.Random) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Yield files with crop boxes: each complete image first if `complete`, then endless odd-sized crops."""
    if complete:
        for path in paths:
            yield path, (0, 0, *read_rgb(path).size)
    while True:
        path = chance.choice(paths)
        sides = read_rgb(path).size
        width, height = (chance.randrange(1, min(LONGEST_CROP, side) + 1, 2) for side in sides)
        left, top = chance.randint(0, sides[0] - width), chance.randint(0, sides[1] - height)
        yield path, (left, top, left + width, top + height)


def test_symbols_survive_the_round_trip(stress: Stress) -> None:
    paths = list_images(stress.images) if stress.images else sample_paths("train")
    codec, other = (glc.load(stress.weights, stress.device) for _ in range(2))
    rounds = stress.count(15, 500)
    chosen = boxes(list(paths), stress.long or stress.images is not None, stress.random())
    for number in range(rounds):
        quality = QUALITIES[number % len(QUALITIES)]
        if number % len(QUALITIES) == 0:
            path, box = next(chosen)
            image = read_rgb(path).crop(box)
        where = f"{path.name} {box} at quality {quality}"
        with encoder_symbols(codec) as sent:
            data = codec.compress(image, quality)
        decoded = codec.symbols(data)
        assert decoded == sent[0], where
        assert other.symbols(data) == decoded, where
        first, second = codec.decompress(data), other.decompress(data)
        assert first.size == image.size, where
        assert first.tobytes() == second.tobytes(), where

"""Golden files: within a format version, their bytes and integers do not change."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import glc
from glc.codec import bitstream
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import VARIANTS, Variants
from tests.programs import load_script

digest = load_script("ship_model").digest
EXPECTED = Path(__file__).parents[1] / "expected"
NOTE = EXPECTED / "golden.json"
REFRESH = "GLC_REFRESH_EXPECTED"
HINT = (
    f"if the change of the format is meant, raise glc.codec.bitstream.VERSION, write it into the changelog's "
    f"line on the bitstream and run these tests once with {REFRESH}=1"
)
SIZES = {"1x1": (1, 1), "67x130": (67, 130), "96x64": (96, 64), "33x200": (33, 200)}
"""Height and width."""
CASES = {
    f"{model}_{size}_q{quality:g}.glc": (model, size, quality)
    for model in VARIANTS
    for size in SIZES
    for quality in (0, 41.7, 100)
    # Every model at every size, every quality at the odd ones of models whose files differ otherwise.
    if quality == 41.7
    or (model == "categorical" and size in ("1x1", "67x130"))
    or (model in ("z_rates", "gate") and size == "67x130")
}
ESCAPES = "escapes_96x64_q0.glc"
MODELS = {**{file: case[0] for file, case in CASES.items()}, ESCAPES: "categorical"}
"""The model of each file."""


def escaping(codec: glc.Codec, size: str) -> glc.Symbols:
    """Return integers of an image among which many must be escaped, by little and by all there is."""
    symbols = codec.symbols(codec.compress(fixed_image(*SIZES[size]), 0))
    y = symbols.y.clone()
    flat = y.view(-1)
    flat[::7] = flat[::7].sign() * 90 + 3
    flat[5] = 32767
    flat[6] = -32767
    flat[11] = -1025
    return glc.Symbols(symbols.z, y)


@pytest.fixture(scope="module")
def expected(variants: Variants) -> dict[str, Any]:
    """What was written down, or is written down anew when the variable asks for it."""
    if os.environ.get(REFRESH) == "1":
        for file in EXPECTED.glob("*.glc"):
            file.unlink()
        for name, (model, size, quality) in CASES.items():
            data = variants.codec(model).compress(fixed_image(*SIZES[size]), quality)
            (EXPECTED / name).write_bytes(data)
        codec = variants.codec("categorical")
        data = codec.from_symbols(escaping(codec, "96x64"), SIZES["96x64"], 0)
        (EXPECTED / ESCAPES).write_bytes(data)
        symbols = {
            name: variants.codec(model).symbols((EXPECTED / name).read_bytes())
            for name, model in MODELS.items()
        }
        note = {
            "version": bitstream.VERSION,
            "fingerprints": {model: variants.codec(model).weights.fingerprint for model in VARIANTS},
            "symbols": {name: digest(found) for name, found in symbols.items()},
        }
        NOTE.write_text(json.dumps(note, indent=2) + "\n")
    return json.loads(NOTE.read_text())


@pytest.mark.parametrize("file", MODELS)
def test_golden_files_decode_to_the_same_integers(
    expected: dict[str, Any], variants: Variants, file: str
) -> None:
    data, codec = (EXPECTED / file).read_bytes(), variants.codec(MODELS[file])
    symbols = codec.symbols(data)
    assert digest(symbols) == expected["symbols"][file], HINT
    header, _ = bitstream.unpack(data)
    assert codec.from_symbols(symbols, (header.height, header.width), header.rate_index) == data, HINT
    if file == ESCAPES:
        assert {32767, -32767, -1025, 93, -87} <= set(symbols.y.unique().tolist())


def test_fingerprints_of_fixed_weights_do_not_change(expected: dict[str, Any], variants: Variants) -> None:
    found = {model: variants.codec(model).weights.fingerprint for model in VARIANTS}
    assert found == expected["fingerprints"], HINT
    assert len(set(found.values())) == len(VARIANTS)


def test_golden_files_have_the_current_version(expected: dict[str, Any]) -> None:
    assert expected["version"] == bitstream.VERSION, HINT
    assert {file.name for file in EXPECTED.glob("*.glc")} == expected["symbols"].keys() == MODELS.keys()
    assert sum(file.stat().st_size for file in EXPECTED.iterdir()) < 60_000

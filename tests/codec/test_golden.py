"""Golden files: within a format version, their bytes and integers do not change."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import glc
from glc.codec import bitstream
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.programs import load_script

digest = load_script("ship_model").digest
EXPECTED = Path(__file__).parents[1] / "expected"
NOTE = EXPECTED / "golden.json"
REFRESH = "GLC_REFRESH_EXPECTED"
HINT = (
    f"if the change of the format is meant, raise glc.codec.bitstream.VERSION, write it into the changelog's "
    f"line on the bitstream and run these tests once with {REFRESH}=1"
)
MODELS: dict[str, dict[str, Any]] = {
    "categorical": {},
    "z_table": {"z_table": True},
    "factorized": {"hyper": "factorized"},
    "indices_map": {"coder": "indices_map"},
}
SIZES = {"1x1": (1, 1), "67x130": (67, 130), "96x64": (96, 64), "33x200": (33, 200)}
"""Height and width."""
QUALITIES = (0, 41.7, 100)
CASES = [
    (model, size, quality)
    for model in MODELS
    for size in SIZES
    for quality in QUALITIES
    # Every model at every size, every quality at the two odd ones of the first model.
    if quality == 41.7 or (model == "categorical" and size in ("1x1", "67x130"))
]


def name_of(model: str, size: str, quality: float) -> str:
    return f"{model}_{size}_q{quality:g}.glc"


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
def codecs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("golden")
    return cache(
        lambda name: glc.load(fixed_codec_weights(folder / f"{name}.safetensors", **MODELS[name]), "cpu")
    )


@pytest.fixture(scope="module")
def expected(codecs: Any) -> dict[str, Any]:
    """What was written down, or is written down anew when the variable asks for it."""
    if os.environ.get(REFRESH) == "1":
        for file in EXPECTED.glob("*.glc"):
            file.unlink()
        EXPECTED.mkdir(exist_ok=True)
        symbols = {}
        for model, size, quality in CASES:
            data = codecs(model).compress(fixed_image(*SIZES[size]), quality)
            (EXPECTED / name_of(model, size, quality)).write_bytes(data)
            symbols[name_of(model, size, quality)] = digest(codecs(model).symbols(data))
        codec = codecs("categorical")
        data = codec.from_symbols(escaping(codec, "96x64"), SIZES["96x64"], 0)
        (EXPECTED / "escapes_96x64_q0.glc").write_bytes(data)
        symbols["escapes_96x64_q0.glc"] = digest(codec.symbols(data))
        note = {
            "version": bitstream.VERSION,
            "fingerprints": {model: codecs(model).weights.fingerprint for model in MODELS},
            "symbols": symbols,
        }
        NOTE.write_text(json.dumps(note, indent=2) + "\n")
    return json.loads(NOTE.read_text())


FILES = [(name_of(*case), case[0]) for case in CASES] + [("escapes_96x64_q0.glc", "categorical")]


@pytest.mark.parametrize(("file", "model"), FILES, ids=[file for file, _ in FILES])
def test_golden_files_decode_to_the_same_integers(
    expected: dict[str, Any], codecs: Any, file: str, model: str
) -> None:
    data, codec = (EXPECTED / file).read_bytes(), codecs(model)
    symbols = codec.symbols(data)
    assert digest(symbols) == expected["symbols"][file], HINT
    header, _ = bitstream.unpack(data)
    assert codec.from_symbols(symbols, (header.height, header.width), header.rate_index) == data, HINT


def test_escaped_integers_round_trip(expected: dict[str, Any], codecs: Any) -> None:
    codec = codecs("categorical")
    symbols = codec.symbols((EXPECTED / "escapes_96x64_q0.glc").read_bytes())
    assert {32767, -32767, -1025, 93, -87} <= set(symbols.y.unique().tolist()), HINT


def test_fingerprints_of_fixed_weights_do_not_change(expected: dict[str, Any], codecs: Any) -> None:
    found = {model: codecs(model).weights.fingerprint for model in MODELS}
    assert found == expected["fingerprints"], HINT
    assert len(set(found.values())) == len(MODELS)


def test_golden_files_have_the_current_version(expected: dict[str, Any]) -> None:
    assert expected["version"] == bitstream.VERSION, HINT
    assert (
        {file.name for file in EXPECTED.glob("*.glc")} == expected["symbols"].keys() == {f for f, _ in FILES}
    )
    assert sum(file.stat().st_size for file in EXPECTED.iterdir()) < 60_000

"""The integer part of the browser's decoder, run in node, agrees with the other decoders."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import glc
from glc import pretrained
from tests.codec import reference_decoder as reference
from tests.codec.reference_weights import Weights
from tests.codec.test_reference_decoder import DAMAGES
from tests.codec.variants import VARIANTS, WITH_Y, Variants
from tests.programs import load_script

PROGRAM = Path(__file__).parent / "web" / "decode.mjs"
EXPECTED = Path(__file__).parents[1] / "expected"
SMALL = Path(pretrained.__path__[0]) / "small.safetensors"
GOLDEN = json.loads((EXPECTED / "small" / "golden.json").read_text())["files"]

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    return Variants(tmp_path_factory.mktemp("weights"))


def decode(*jobs: tuple[Path, Sequence[bytes]]) -> list[list[dict[str, Any]]]:
    """Return what node finds in files, for each of some weights; arrays are flat."""
    texts = [
        {"weights": str(weights), "files": [base64.b64encode(file).decode() for file in files]}
        for weights, files in jobs
    ]
    run = subprocess.run(["node", PROGRAM], input=json.dumps(texts), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for one in (one for files in found for one in files):
        for name, kind in (("z", "<i4"), ("y", "<i4"), ("y_hat", "<f4")):
            if one.get(name) is not None:
                one[name] = np.frombuffer(base64.b64decode(one[name]), kind)
    return found


def assert_same(found: dict[str, Any], expected: reference.Decoded) -> None:
    assert "error" not in found, found
    np.testing.assert_array_equal(found["y"], expected.y.ravel())
    if expected.z is None:
        assert found["z"] is None
    else:
        np.testing.assert_array_equal(found["z"], expected.z.ravel())
        exact = np.ldexp(expected.y_hat.astype(np.float64), -24)
        np.testing.assert_array_equal(found["y_hat"], exact.ravel().astype(np.float32))


def test_golden_files_of_the_bundled_codec_have_the_same_integers() -> None:
    files = {name: (EXPECTED / "small" / name).read_bytes() for name in GOLDEN}
    (found,) = decode((SMALL, list(files.values())))
    digest = load_script("ship_model").digest
    for name, one in zip(files, found, strict=True):
        h, w = one["height"], one["width"]
        symbols = SimpleNamespace(z=one["z"].reshape(1, h // 4, w // 4), y=one["y"].reshape(1, -1, h, w))
        assert digest(symbols) == GOLDEN[name]["symbols"], name


def test_golden_files_of_every_kind_of_codec_have_the_same_integers(variants: Variants) -> None:
    files: dict[str, list[Path]] = {name: [] for name in VARIANTS}
    for file in sorted(EXPECTED.glob("*.glc")):
        files[next((name for name in VARIANTS if file.stem.startswith(name)), "categorical")].append(file)
    jobs = [(variants.weights(name), [file.read_bytes() for file in some]) for name, some in files.items()]
    for (weights, data), found in zip(jobs, decode(*jobs), strict=True):
        expected = [reference.decode(one, Weights.read(weights)) for one in data]
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("spread", [2, 5000])
def test_arbitrary_integers_have_the_same_values(variants: Variants, spread: int) -> None:
    rng = np.random.default_rng(spread)

    def integers(*shape: int) -> np.ndarray:
        return np.clip(np.rint(rng.standard_cauchy(shape) * spread), -32767, 32767).astype(np.int32)

    jobs, symbols = [], []
    for name in WITH_Y:
        y = integers(16, 8, 12)
        z = integers(16, 2, 3) if name == "factorized" else rng.integers(0, 32, (2, 3))
        file = variants.codec(name).from_symbols(glc.Symbols(z[None], y[None]), (64, 96), 0)
        jobs.append((variants.weights(name), [file]))
        symbols.append((z, y))
    for (z, y), (one,) in zip(symbols, decode(*jobs), strict=True):
        np.testing.assert_array_equal(one["z"], z.ravel())
        np.testing.assert_array_equal(one["y"], y.ravel())


def test_damaged_files_end_in_the_same_errors(variants: Variants) -> None:
    data = (EXPECTED / "categorical_67x130_q41.7.glc").read_bytes()
    weights = variants.weights("categorical")
    (found,) = decode((weights, [damage(data) for damage, _ in DAMAGES.values()]))
    for (name, (damage, expected)), one in zip(DAMAGES.items(), found, strict=True):
        if not expected:
            assert_same(one, reference.decode(damage(data), Weights.read(weights)))
            continue
        assert one.get("error") == expected, name
        assert one["message"]
        assert "\n" not in one["message"]


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"\x10" + bytes(40))
    run = subprocess.run(
        ["node", PROGRAM],
        input=json.dumps([{"weights": str(tmp_path / "none"), "files": []}]),
        capture_output=True,
        text=True,
    )
    assert "the weights are not a codec's safetensors file" in run.stderr


def test_tables_of_z_that_do_not_fit_are_refused(variants: Variants, tmp_path: Path) -> None:
    source = variants.weights("z_rates")
    with safe_open(source, framework="np") as opened:
        metadata = dict(opened.metadata())
    for number, edit in enumerate(
        (lambda z: z[1:], lambda z: [[1, *z[0][1:]], *z[1:]], lambda z: [z[0][:-1]])
    ):
        tables = json.loads(metadata["tables"])
        tables["z_rates"] = edit(tables["z_rates"])
        changed = tmp_path / f"{number}.safetensors"
        save_file(load_file(source), changed, {**metadata, "tables": json.dumps(tables)})
        run = subprocess.run(
            ["node", PROGRAM],
            input=json.dumps([{"weights": str(changed), "files": []}]),
            capture_output=True,
            text=True,
        )
        assert re.search("the tables of z do not fit the codec|bad sum of frequencies", run.stderr), number

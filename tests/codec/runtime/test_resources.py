"""Number formats and memory limits, and that neither changes the integers of a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import glc
from glc.cli import main
from glc.codec.runtime import resources, winograd
from glc.codec.runtime.resources import available_memory, choose_precision, parse_memory, resident_memory
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import Variants

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("500 mb", 5 * 10**8), ("1.5g", 15 * 10**8), ("4096", 4096)]
)
def test_memory_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "8XB", "nan"])
def test_other_memory_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 8GB"):
        parse_memory(text)


def test_available_and_resident_memory_are_plausible() -> None:
    free = available_memory()
    assert free is None or 0 < free < 1 << 50
    held = torch.ones(1 << 24)
    assert resident_memory() == 0 or resident_memory() > held.nbytes


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("native", [None, "a library"])
def test_auto_precision_decodes_in_bfloat16_only_where_it_is_faster(
    units: bool, native: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "multiplies_bfloat16", lambda device: units)
    monkeypatch.setattr(winograd, "library", lambda: native)
    chosen = choose_precision("auto", CPU)
    assert chosen.encoder == torch.float32
    assert chosen.decoder == (torch.bfloat16 if units and native is None else torch.float32)


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        choose_precision("half", CPU)


def test_integers_of_a_file_do_not_depend_on_precision(variants: Variants) -> None:
    weights = variants.weights("categorical")
    codecs = [glc.load(weights, "cpu", precision=name) for name in ("float32", "bfloat16")]
    image = fixed_image(67, 100)
    for writer in codecs:
        data = writer.compress(image, 70)
        assert codecs[0].symbols(data) == codecs[1].symbols(data)
        decoded = [np.asarray(reader.decompress(data)).astype(float) for reader in codecs]
        assert 0 < np.abs(decoded[0] - decoded[1]).mean() < 4


def test_too_low_memory_limit_fails_with_advice(variants: Variants, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(fixed_image(64, 64)).save(image)
    arguments = ["compress", str(image), "--model", str(variants.weights("categorical")), "--memory"]
    result = CliRunner().invoke(main, [*arguments, "1MB"])
    assert result.exit_code == 2
    assert "raise --memory" in result.output
    assert not (tmp_path / "a.glc").exists()
    assert CliRunner().invoke(main, [*arguments, "much"]).exit_code == 2
    assert CliRunner().invoke(main, [*arguments, "64GB", "--precision", "bfloat16"]).exit_code == 0

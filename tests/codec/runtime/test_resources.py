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
from tests.codec.fixed_model import fixed_codec_weights, fixed_image

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


@pytest.mark.parametrize(
    ("units", "native", "decoder"),
    [
        (True, None, torch.bfloat16),
        (False, None, torch.float32),
        (True, "a library", torch.float32),
        (False, "a library", torch.float32),
    ],
)
def test_auto_precision_decodes_in_bfloat16_only_where_it_is_faster(
    units: bool, native: object, decoder: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "multiplies_bfloat16", lambda device: units)
    monkeypatch.setattr(winograd, "library", lambda: native)
    chosen = choose_precision("auto", CPU)
    assert (chosen.encoder, chosen.decoder) == (torch.float32, decoder)
    with pytest.raises(ValueError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        choose_precision("half", CPU)


def test_integers_of_a_file_do_not_depend_on_precision(tmp_path: Path) -> None:
    weights = fixed_codec_weights(tmp_path / "weights.safetensors")
    codecs = {name: glc.load(weights, "cpu", precision=name) for name in ("float32", "bfloat16")}
    image = fixed_image(67, 100)
    for writer in codecs.values():
        data = writer.compress(image, 70)
        symbols = [reader.symbols(data) for reader in codecs.values()]
        assert symbols[0] == symbols[1]
        decoded = [np.asarray(reader.decompress(data)).astype(float) for reader in codecs.values()]
        assert 0 < np.abs(decoded[0] - decoded[1]).mean() < 4


def test_too_low_memory_limit_fails_with_advice(tmp_path: Path) -> None:
    weights = fixed_codec_weights(tmp_path / "weights.safetensors")
    image = tmp_path / "a.png"
    Image.fromarray(fixed_image(64, 64)).save(image)
    arguments = ["compress", str(image), "--model", str(weights), "--memory"]
    result = CliRunner().invoke(main, [*arguments, "1MB"])
    assert result.exit_code == 2
    assert "raise --memory" in result.output
    assert not (tmp_path / "a.glc").exists()
    assert CliRunner().invoke(main, [*arguments, "much"]).exit_code == 2
    assert CliRunner().invoke(main, [*arguments, "64GB", "--precision", "bfloat16"]).exit_code == 0

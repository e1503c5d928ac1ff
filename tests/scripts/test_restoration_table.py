"""scripts/restoration_table.py on one small image."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from glc.data.degradations import GaussianNoise, Mask
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.programs import load_script

table = load_script("restoration_table")


def test_restorers_reduce_the_error(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :64]
    clean = np.stack([rows * 2 + 60, columns * 2 + 60, rows + columns + 60], -1).astype(np.uint8)
    image = Image.fromarray(clean)

    class Halve(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    sides = {"x": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    halve = torch.export.export(Halve(), (torch.rand(1, 3, 48, 40),), dynamic_shapes=sides)
    torch.export.save(halve, tmp_path / "halve.pt2")
    for degradation, names in (
        (GaussianNoise(20), {"non-local means", "total variation", "halve"}),
        (Mask(0.1, canvas=1), {"biharmonic inpainting", "halve"}),
    ):
        degraded = table.degrade(degradation, image, 0, seed=0)
        assert degraded.tobytes() == table.degrade(degradation, image, 0, seed=0).tobytes()
        found = table.restorers(degradation, tmp_path / "halve.pt2")
        assert names <= found.keys()

        def error(image: Image.Image) -> float:
            return float(((np.asarray(image, float) - clean) ** 2).mean())

        for name in names - {"halve"}:
            assert error(found[name](degraded)) < error(degraded) / 2, name
        halved = np.asarray(found["halve"](degraded), float)
        assert np.abs(halved - np.asarray(degraded, float) / 2).max() <= 0.51


def test_encoder_with_more_bytes_does_not_beat_the_codec() -> None:
    alone = {"psnr": 20.0, "lpips_alex": 0.4, "bytes": 1000}
    ours = {"psnr": 20.1, "lpips_alex": 0.39, "bytes": 1000}
    assert table.beats(ours, alone)
    for worse in ({"bytes": 1001}, {"lpips_alex": 0.41}, {"psnr": 19.9}):
        assert not table.beats({**ours, **worse}, alone)
    assert table.beats({"psnr": 20.1, "bytes": 990}, {"psnr": 20.0, "bytes": 1000})


@pytest.mark.usefixtures("offline")
def test_table_compares_at_equal_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = fixed_codec_weights(tmp_path / "codec.safetensors")
    weights = read_weights(codec)
    encoder = tmp_path / "own.encoder.safetensors"
    state = weights.model.encoder.state_dict()
    save_variant(encoder, "encoder", state, weights.description["encoder"], weights.fingerprint)
    (tmp_path / "photos").mkdir()
    Image.fromarray(fixed_image(192, 192)).save(tmp_path / "photos" / "a.png")
    words = ["--codec", str(codec), "--encoder", str(encoder), "--images", str(tmp_path / "photos")]
    words += ["--output", str(tmp_path / "out"), "degradation.sigma=30"]
    monkeypatch.setattr(sys, "argv", ["restoration_table.py", *words])
    # The encoder is the codec's own: it does not beat itself.
    assert table.main() == 1
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["way"] for row in rows][:2] == [table.OURS, table.ALONE]
    assert rows[-1]["way"] == table.CLEAN
    assert all(rows[0]["bytes"] <= row["bytes"] <= 1.03 * rows[0]["bytes"] for row in rows[1:2])
    assert all(row["bpp"] == pytest.approx(8 * row["bytes"] / 192**2) for row in rows)
    assert Image.open(tmp_path / "out" / "side_by_side.png").size[1] == 192
    assert "lpips_alex omitted" in capsys.readouterr().err
    capsys.readouterr()
    for bad, message in (
        ([*words[:5], str(tmp_path / "no"), *words[6:]], "no: "),
        ([*words, "--degradation", "nosie"], "nosie"),
        ([*words[:-1], "degradation.sgima=3"], "degradation.sgima"),
        ([*words[:-1], "degradation.sigma=-3"], "degradation.sigma must be a number"),
    ):
        monkeypatch.setattr(sys, "argv", ["restoration_table.py", *bad])
        assert table.main() == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said

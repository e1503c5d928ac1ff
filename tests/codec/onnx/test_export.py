"""`glc export --onnx` writes graphs that other programs can run."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from glc.cli import main
from glc.codec.onnx import export as exporting
from glc.codec.onnx.export import export_onnx
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import Variants

onnxruntime = pytest.importorskip("onnxruntime")


def test_exported_graphs_decode_a_file(variants: Variants, tmp_path: Path) -> None:
    codec, folder = variants.codec("categorical"), tmp_path / "graphs"
    file = variants.weights("categorical")
    result = CliRunner().invoke(main, ["export", "--onnx", str(file), str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    names = ["encoder", "analysis", "synthesis", "decoder"]
    assert [line.partition(":")[0] for line in lines] == [str(folder / f"{name}.onnx") for name in names]
    assert all(float(line.split("PSNR ")[1].split()[0]) > 100 for line in lines)
    about = json.loads((folder / "glc.json").read_text())
    assert about["stride"] == codec.stride
    assert about["fingerprint"] == codec.weights.fingerprint

    sessions = {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in names}
    image, rate = fixed_image(64, 96), np.array([2.5], np.float32)
    x = image.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    (latent,) = sessions["encoder"].run(None, {"x": x})
    y, z = sessions["analysis"].run(None, {"l": latent, "rate": rate})
    data = codec.compress(image, codec.quality_of(round(2.5 * 4096)))
    assert np.array_equal(z, codec.symbols(data).z)
    (l_hat,) = sessions["synthesis"].run(None, {"y_hat": y, "rate": rate})
    (x_hat,) = sessions["decoder"].run(None, {"l_hat": l_hat})
    assert x_hat.shape == (1, 3, 64, 96)

    again = CliRunner().invoke(main, ["export", "--onnx", str(file), str(folder)])
    assert again.exit_code == 1
    assert "encoder.onnx: exists; replace it with --force" in again.output


def test_indices_map_codec_has_two_graphs(variants: Variants, tmp_path: Path) -> None:
    done = export_onnx(variants.weights("indices_map"), tmp_path)
    assert [each.path.name for each in done] == ["encoder.onnx", "decoder.onnx"]
    assert json.loads((tmp_path / "glc.json").read_text())["stride"] == 8


def test_checkpoints_can_be_exported(stages: dict[str, Path], tmp_path: Path) -> None:
    done = export_onnx(stages["joint"], tmp_path)
    assert len(done) == 4
    assert all(each.decibels is not None and each.decibels > 80 for each in done)


def test_graphs_that_differ_are_not_written(
    variants: Variants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "LEAST_DECIBELS", 1000)
    with pytest.raises(ValueError, match=r"the encoder graph differs from PyTorch \(\d+\.\d dB\)"):
        export_onnx(variants.weights("categorical"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--half", "--training"])
def test_options_of_weights_files_are_refused(option: str, variants: Variants, tmp_path: Path) -> None:
    words = ["export", "--onnx", option, str(variants.weights("categorical")), str(tmp_path / "out")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "--onnx cannot be combined with" in result.output

"""The bundled codec matches its record, and its golden files keep decoding."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hydra.utils import instantiate

import glc
from glc import pretrained
from glc.cli import main
from glc.codec import bitstream
from glc.codec.convert.read import open_source
from glc.codec.weights.file import decoder_digest
from glc.codec.weights.labels import TrainingLabel, read_label
from glc.data.images import read_rgb
from glc.data.sources import sample_paths
from glc.training.init_from import warm_start
from tests.programs import load_script
from tests.short_runs import ROOT, compose, settings

NAME = "small"
WEIGHTS = Path(pretrained.__path__[0]) / f"{NAME}.safetensors"
RECORD = ROOT / "docs" / "models" / NAME
EXPECTED = ROOT / "tests" / "expected" / NAME
GOLDEN = json.loads((EXPECTED / "golden.json").read_text())
PHOTOGRAPHS = {path.stem: path for path in sample_paths("test")}


@pytest.fixture(scope="module")
def codec() -> glc.Codec:
    return glc.load(device="cpu")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((RECORD / "record.json").read_text())


def test_bundled_weights_match_their_record(codec: glc.Codec, record: dict[str, Any]) -> None:
    data = WEIGHTS.read_bytes()
    assert len(data) == record["bytes"] <= 24e6
    assert hashlib.sha256(data).hexdigest() == record["sha256"]
    assert codec.weights.fingerprint == record["fingerprint"] == GOLDEN["fingerprint"]
    assert len(codec.weights.rates) == 4


def test_record_names_the_training_data_of_each_stage(record: dict[str, Any]) -> None:
    for stage, made in record["stages"].items():
        recipe = yaml.safe_load((RECORD / f"{stage}.yaml").read_text())
        assert recipe["stage"]["name"] == stage
        assert recipe["model"]["name"] == NAME
        assert "kodak" not in json.dumps(recipe).lower()
        lines = (RECORD / f"{stage}.csv").read_text().splitlines()
        assert abs(int(lines[-1].split(",")[0]) - made["steps"]) <= recipe["data"]["epoch_batches"]


def test_training_can_start_from_the_bundled_weights(record: dict[str, Any], tmp_path: Path) -> None:
    path = RECORD / "training.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["training_sha256"]
    options = {**settings(tmp_path, tmp_path, "on", "joint"), "model": NAME, "stage.lmbda": 1.0}
    stage = instantiate(compose(options).stage.module)
    files = [open_source(file) for file in (WEIGHTS, path)]
    assert set(warm_start(stage, *files)) == {
        *("model.encoder", "model.decoder", "model.coder", "quantizer"),
        *("code_loss.predictor", "vq_encoder", "adversarial.discriminator"),
    }
    label = read_label(path)
    assert isinstance(label, TrainingLabel)
    assert label.decoder == decoder_digest(stage.model.decoder.state_dict())


@pytest.mark.parametrize("file", GOLDEN["files"])
def test_golden_files_of_the_bundled_codec_decode_to_the_same_integers(codec: glc.Codec, file: str) -> None:
    data, expected = (EXPECTED / file).read_bytes(), GOLDEN["files"][file]
    symbols = codec.symbols(data)
    assert load_script("ship_model").digest(symbols) == expected["symbols"]
    header, _ = bitstream.unpack(data)
    assert codec.from_symbols(symbols, (header.height, header.width), header.rate_index) == data


def test_golden_file_decodes_close_to_its_photograph(codec: glc.Codec) -> None:
    for file, expected in GOLDEN["files"].items():
        if file.endswith("q100.glc"):
            original = read_rgb(PHOTOGRAPHS[file.split("_")[0]]).crop(expected["box"])
            decoded = codec.decompress((EXPECTED / file).read_bytes())
            assert decoded.size == original.size
            error = np.mean((np.asarray(decoded, float) - np.asarray(original, float)) ** 2)
            # A grey image of the right mean has 11 to 15 dB here.
            assert 10 * np.log10(255**2 / error) > 18


def test_default_model_compresses_a_photograph(tmp_path: Path, codec: glc.Codec) -> None:
    photo = PHOTOGRAPHS["chelsea"]
    sizes = []
    for quality in ("0", "33", "67", "100"):
        file = tmp_path / f"{quality}.glc"
        words = ["compress", str(photo), "--quality", quality, "-o", str(file)]
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        sizes.append(file.stat().st_size)
    assert sizes == sorted(set(sizes))
    width, height = read_rgb(photo).size
    assert 0.01 < 8 * sizes[0] / (width * height) < 8 * sizes[-1] / (width * height) < 0.08

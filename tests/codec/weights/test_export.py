"""From a training checkpoint to a weights file and back to the same model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from glc.cli import main
from glc.codec.codec import Codec
from glc.codec.weights.export import export
from glc.codec.weights.file import read_weights
from glc.errors import WeightsError
from glc.models.glc import GLC
from glc.models.quantizer import VectorQuantizer
from tests.codec.fixed_model import fixed_image
from tests.short_runs import checkpoint


@pytest.fixture(scope="session")
def exported(stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "codec.safetensors"
    export(stages["joint"] / "checkpoints" / "last.ckpt", path)
    return path


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def image(size: int = 128) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_exported_codec_equals_the_EMA_model(stages: dict[str, Path], exported: Path) -> None:
    saved = checkpoint(stages["joint"])
    stage = instantiate(OmegaConf.create(saved["glc"]["recipe"]["stage"]["module"]))
    stage.load_state_dict(saved["state_dict"])
    trained: GLC = stage.model.eval()
    live = copy.deepcopy(trained)
    names = trained.state_dict().keys()
    live.load_state_dict({name: saved["current_model_state"][f"model.{name}"] for name in names})
    loaded = read_weights(exported).model
    assert not loaded.training
    x = image()
    for rate_index in (0, 1.5, 3):
        expected, out = trained(x, rate_index), loaded(x, rate_index)
        for name in ("latent", "z_indices", "symbols", "scales", "latent_hat", "x_hat", "bits_y", "bits_z"):
            assert torch.equal(getattr(out, name), getattr(expected, name)), name
        assert not torch.equal(live(x, rate_index).x_hat, out.x_hat)


def test_export_omits_training_networks(exported: Path) -> None:
    tensors = load_file(exported)
    assert {name.split(".")[0] for name in tensors} == {"encoder", "decoder", "coder"}
    assert not [name for name in tensors if "projection" in name and "quantizer" in name]
    with safe_open(exported, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "model", "tables", "rates", "fingerprint", "encoder_fingerprint"}
    assert '"projected": true' not in metadata["model"]
    quantizers = [m for m in read_weights(exported).model.modules() if isinstance(m, VectorQuantizer)]
    assert quantizers
    assert all(quantizer.projection is None for quantizer in quantizers)


def test_stage_two_can_be_exported_too(stages: dict[str, Path], tmp_path: Path) -> None:
    export(stages["transform"] / "checkpoints" / "last.ckpt", tmp_path / "new" / "codec.safetensors")
    with torch.no_grad():
        assert read_weights(tmp_path / "new" / "codec.safetensors").model(image(), 0).x_hat.isfinite().all()


def test_refuses_a_stage_without_a_codec(stages: dict[str, Path], tmp_path: Path) -> None:
    source = stages["vqvae"] / "checkpoints" / "last.ckpt"
    with pytest.raises(WeightsError, match=r"last\.ckpt: .*stage=vqvae.*stage=transform or stage=joint"):
        export(source, tmp_path / "out" / "codec.safetensors")
    assert not (tmp_path / "out").exists()


def test_non_checkpoints_are_refused(stages: dict[str, Path], tmp_path: Path) -> None:
    whole = (stages["joint"] / "checkpoints" / "last.ckpt").read_bytes()
    for name, content in {
        "text": b"not a checkpoint\n" * 10,
        "cut": whole[: len(whole) // 2],
        "empty": b"",
    }.items():
        (tmp_path / f"{name}.ckpt").write_bytes(content)
    for name, saved in {
        "foreign": {"state_dict": {}},
        "list": [1, 2],
        "newer": {"glc": {"format": 99, "recipe": {}}, "state_dict": {}},
        "unnumbered": {"glc": {"recipe": {}}, "state_dict": {}},
    }.items():
        torch.save(saved, tmp_path / f"{name}.ckpt")
    destination = tmp_path / "out" / "codec.safetensors"
    for name in ("text", "cut", "empty", "foreign", "list", "newer", "unnumbered", "missing"):
        complaint = ".*format 99 is newer" if name == "newer" else ""
        with pytest.raises(WeightsError, match=rf"{name}\.ckpt: {complaint}"):
            export(tmp_path / f"{name}.ckpt", destination)
    assert not destination.parent.exists()


def test_refuses_a_checkpoint_whose_weights_do_not_fit(stages: dict[str, Path], tmp_path: Path) -> None:
    saved = checkpoint(stages["joint"])
    removed = next(name for name in saved["state_dict"] if name.startswith("model.decoder"))
    del saved["state_dict"][removed]
    torch.save(saved, tmp_path / "odd.ckpt")
    with pytest.raises(WeightsError, match=r"odd\.ckpt: .*" + removed.removeprefix("model.")):
        export(tmp_path / "odd.ckpt", tmp_path / "codec.safetensors")
    assert not (tmp_path / "codec.safetensors").exists()


def test_checkpoints_never_execute_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"glc": {"format": 1, "recipe": {}}, "state_dict": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(WeightsError, match=r"trap\.ckpt: cannot be read safely as a checkpoint"):
        export(tmp_path / "trap.ckpt", tmp_path / "codec.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_export_command_accepts_a_run_folder(stages: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "codec.safetensors"
    result = command("export", stages["joint"], out)
    assert result.exit_code == 0, result.output
    # Not their bytes: safetensors writes the two entries of the metadata in any order.
    with safe_open(out, framework="pt") as found, safe_open(exported, framework="pt") as expected:
        assert found.metadata() == expected.metadata()
        assert list(found.keys()) == list(expected.keys())
        assert all(torch.equal(found.get_tensor(k), expected.get_tensor(k)) for k in found.keys())  # noqa: SIM118

    result = command("export", stages["vqvae"], tmp_path / "no.safetensors")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "stage=vqvae" in result.stderr
    result = command("export", tmp_path, tmp_path / "no.safetensors")
    assert result.exit_code == 1
    assert "last.ckpt: no such checkpoint" in result.stderr
    assert not (tmp_path / "no.safetensors").exists()


def test_export_command_writes_training_weights(stages: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "mine.training.safetensors"
    words = ("export", stages["joint"], out, "--training", "--half")
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"{out}: C, the code predictor, E_VQ, the discriminator"
    with safe_open(out, framework="pt") as found:
        assert {key.split(".")[0] for key in found.keys()} == {  # noqa: SIM118
            "quantizer", "code_loss", "vq_encoder", "adversarial",
        }  # fmt: skip
        assert found.get_tensor("quantizer.embedding").dtype == torch.float16
    assert command(*words).exit_code == 1  # nothing is replaced without --force
    result = command(*words, "--images", tmp_path, "--force")
    assert result.exit_code == 2
    assert "--images: only applies to a codec" in result.stderr


@pytest.mark.parametrize("name", ["export", "convert"])
def test_source_checkpoint_is_not_overwritten(stages: dict[str, Path], tmp_path: Path, name: str) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    content = (stages["joint"] / "checkpoints" / "last.ckpt").read_bytes()
    last.write_bytes(content)
    for source in (tmp_path, last):
        result = command(name, source, last, "--force")
        assert result.exit_code == 1
        assert "last.ckpt: is the source file" in result.stderr
    assert last.read_bytes() == content


def test_export_command_half_and_photos(stages: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(fixed_image(96, 128, seed)).save(folder / f"{seed}.png")
    (tmp_path / "list.txt").write_text("photos/0.png\nphotos/1.png\n")
    found = []
    for photos in (folder, tmp_path / "list.txt"):
        out = tmp_path / f"{photos.stem}.safetensors"
        result = command("export", stages["joint"], out, "--half", "--images", photos)
        assert result.exit_code == 0, result.output
        found.append(read_weights(out))
        assert {t.dtype for t in load_file(out).values() if t.is_floating_point()} == {torch.float16}
        assert out.stat().st_size < 0.6 * exported.stat().st_size
    fixed_length = read_weights(exported)
    assert not fixed_length.tables.z_rates
    assert len(found[0].tables.z_rates) == found[0].model.num_rates
    for table in found[0].tables.z_rates:
        # Codes that the photos need are likelier than the others, which keep a chance.
        assert max(table.frequencies) > min(table.frequencies) > 0
    with safe_open(exported, framework="pt") as old, safe_open(out, framework="pt") as new:
        assert (old.metadata()["format"], new.metadata()["format"]) == ("1", "2")
    assert found[0].tables == found[1].tables
    assert found[0].fingerprint == found[1].fingerprint != fixed_length.fingerprint


def test_tables_count_the_indices_of_each_rate_point(stages: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(fixed_image(96, 128)).save(tmp_path / "photo.png")
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    export(stages["joint"] / "checkpoints" / "last.ckpt", out, photos=[tmp_path / "photo.png"])
    export(out, again, photos=[tmp_path / "photo.png"])  # of a weights file: the same codec, new tables
    weights, other = read_weights(out), read_weights(again)
    assert (other.fingerprint, other.rates) == (weights.fingerprint, weights.rates)
    codec = Codec(weights)
    for rate, table in enumerate(weights.tables.z_rates):
        z = codec.symbols(codec.compress(fixed_image(96, 128), 100 * rate / (codec.num_rates - 1))).z
        counts = torch.bincount(z.flatten(), minlength=len(table.frequencies)) + 1
        expected = counts.double() / counts.sum() * (1 << 24)
        rest = int(expected.argmax())  # takes the rounding's remainder
        found = torch.tensor(table.frequencies).double()
        others = torch.arange(len(found)) != rest
        assert (found - expected)[others].abs().max() <= 0.5


def test_export_command_refuses_invalid_photos(stages: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("no image")
    out = tmp_path / "out.safetensors"
    for photos, message in (
        ("empty", "contains no images"),
        ("missing", "no such folder or file"),
        ("bad.png", "not an image in a known format"),
    ):
        result = command("export", stages["joint"], out, "--images", tmp_path / photos)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {tmp_path / photos}: {message}")
        assert result.stderr.count("\n") == 1
    assert not out.exists()

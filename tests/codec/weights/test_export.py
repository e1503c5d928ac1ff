"""From a training checkpoint to a weights file and back to the same model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from glc.cli import main
from glc.codec.weights.export import export
from glc.codec.weights.file import read_weights
from glc.errors import WeightsError
from glc.models.glc import GLC
from glc.models.quantizer import VectorQuantizer
from tests.codec.fixed_model import fixed_image
from tests.programs import fresh
from tests.short_runs import checkpoint


@pytest.fixture(scope="session")
def weights(stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "codec.safetensors"
    export(stages["joint"] / "checkpoints" / "last.ckpt", path)
    return path


def image(size: int = 128) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_exported_codec_equals_the_EMA_model(stages: dict[str, Path], weights: Path) -> None:
    saved = checkpoint(stages["joint"])
    stage = instantiate(OmegaConf.create(saved["glc"]["recipe"]["stage"]["module"]))
    stage.load_state_dict(saved["state_dict"])
    trained: GLC = stage.model.eval()
    live = copy.deepcopy(trained)
    names = trained.state_dict().keys()
    live.load_state_dict({name: saved["current_model_state"][f"model.{name}"] for name in names})
    loaded = read_weights(weights).model
    assert not loaded.training
    x = image()
    for rate_index in (0, 1.5, 3):
        expected, out = trained(x, rate_index), loaded(x, rate_index)
        for name in ("latent", "z_indices", "symbols", "scales", "latent_hat", "x_hat", "bits_y", "bits_z"):
            assert torch.equal(getattr(out, name), getattr(expected, name)), name
        assert not torch.equal(live(x, rate_index).x_hat, out.x_hat)


def test_export_omits_training_networks(weights: Path) -> None:
    tensors = load_file(weights)
    assert {name.split(".")[0] for name in tensors} == {"encoder", "decoder", "coder"}
    assert not [name for name in tensors if "projection" in name and "quantizer" in name]
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "model", "tables", "rates", "fingerprint", "encoder_fingerprint"}
    assert '"projected": true' not in metadata["model"]
    quantizers = [m for m in read_weights(weights).model.modules() if isinstance(m, VectorQuantizer)]
    assert quantizers
    assert all(quantizer.projection is None for quantizer in quantizers)


def test_stage_two_can_be_exported_too(stages: dict[str, Path], tmp_path: Path) -> None:
    export(stages["transform"] / "checkpoints" / "last.ckpt", tmp_path / "new" / "codec.safetensors")
    with torch.no_grad():
        assert read_weights(tmp_path / "new" / "codec.safetensors").model(image(), 0).x_hat.isfinite().all()


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "hydra", "omegaconf", "wandb", "torchmetrics", "lpips"}:
            raise ImportError(name)
import torch
sys.meta_path.insert(0, Blocker())
from glc.codec.weights.file import read_weights
model = read_weights(sys.argv[1]).model
x = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(model(x, 1).x_hat, sys.argv[3])
"""


def test_export_loads_without_the_training_stack(weights: Path, tmp_path: Path) -> None:
    torch.save(image(), tmp_path / "x.pt")
    paths = [str(p) for p in (weights, tmp_path / "x.pt", tmp_path / "x_hat.pt")]
    done = fresh(["-c", BLOCKED, *paths])
    assert done.returncode == 0, done.stderr
    x_hat = torch.load(tmp_path / "x_hat.pt", weights_only=True)
    with torch.no_grad():
        # Another process may split sums over threads in another way.
        torch.testing.assert_close(x_hat, read_weights(weights).model(image(), 1).x_hat, rtol=1e-3, atol=1e-3)


def test_refuses_a_stage_without_a_codec(stages: dict[str, Path], tmp_path: Path) -> None:
    source = stages["vqvae"] / "checkpoints" / "last.ckpt"
    with pytest.raises(WeightsError, match=r"last\.ckpt: .*stage=vqvae.*stage=transform or stage=joint"):
        export(source, tmp_path / "out" / "codec.safetensors")
    assert not (tmp_path / "out").exists()


def test_non_checkpoints_are_refused(stages: dict[str, Path], tmp_path: Path) -> None:
    whole = (stages["joint"] / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "text.ckpt").write_text("not a checkpoint\n" * 10)
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"glc": {"format": 99, "recipe": {}}, "state_dict": {}}, tmp_path / "newer.ckpt")
    torch.save({"glc": {"recipe": {}}, "state_dict": {}}, tmp_path / "unnumbered.ckpt")
    names = ("text", "cut", "empty", "foreign", "list", "newer", "unnumbered", "missing")
    destination = tmp_path / "out" / "codec.safetensors"
    for name in names:
        with pytest.raises(WeightsError, match=rf"{name}\.ckpt: "):
            export(tmp_path / f"{name}.ckpt", destination)
    with pytest.raises(WeightsError, match="format 99 is newer"):
        export(tmp_path / "newer.ckpt", destination)
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


def test_failed_export_keeps_the_old_file(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "codec.safetensors"
    destination.write_bytes(b"old")

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glc.codec.weights.file.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        export(stages["joint"] / "checkpoints" / "last.ckpt", destination)
    assert [path.name for path in tmp_path.iterdir()] == ["codec.safetensors"]
    assert destination.read_bytes() == b"old"


def test_export_command_accepts_a_run_folder(stages: dict[str, Path], weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "codec.safetensors"
    result = CliRunner().invoke(main, ["export", str(stages["joint"]), str(out)])
    assert result.exit_code == 0, result.output
    # Not their bytes: safetensors writes the two entries of the metadata in any order.
    with safe_open(out, framework="pt") as found, safe_open(weights, framework="pt") as expected:
        assert found.metadata() == expected.metadata()
        assert list(found.keys()) == list(expected.keys())
        assert all(torch.equal(found.get_tensor(k), expected.get_tensor(k)) for k in found.keys())  # noqa: SIM118

    result = CliRunner().invoke(main, ["export", str(stages["vqvae"]), str(tmp_path / "no.safetensors")])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "stage=vqvae" in result.stderr
    result = CliRunner().invoke(main, ["export", str(tmp_path), str(tmp_path / "no.safetensors")])
    assert result.exit_code == 1
    assert "last.ckpt: no such checkpoint" in result.stderr
    assert not (tmp_path / "no.safetensors").exists()


def test_export_command_writes_training_weights(stages: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "mine.training.safetensors"
    words = ["export", str(stages["joint"]), str(out), "--training", "--half"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"{out}: C, the code predictor, E_VQ, the discriminator"
    with safe_open(out, framework="pt") as found:
        assert {key.split(".")[0] for key in found.keys()} == {  # noqa: SIM118
            "quantizer", "code_loss", "vq_encoder", "adversarial",
        }  # fmt: skip
        assert found.get_tensor("quantizer.embedding").dtype == torch.float16
    assert CliRunner().invoke(main, words).exit_code == 1  # nothing is replaced without --force
    result = CliRunner().invoke(main, [*words, "--images", str(tmp_path), "--force"])
    assert result.exit_code == 2
    assert "--images: only applies to a codec" in result.stderr


@pytest.mark.parametrize("command", ["export", "convert"])
def test_source_checkpoint_is_not_overwritten(stages: dict[str, Path], tmp_path: Path, command: str) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    content = (stages["joint"] / "checkpoints" / "last.ckpt").read_bytes()
    last.write_bytes(content)
    for source in (tmp_path, last):
        result = CliRunner().invoke(main, [command, str(source), str(last), "--force"])
        assert result.exit_code == 1
        assert "last.ckpt: is the source file" in result.stderr
    assert last.read_bytes() == content


def test_export_command_half_and_photos(stages: dict[str, Path], weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(fixed_image(96, 128, seed)).save(folder / f"{seed}.png")
    (tmp_path / "list.txt").write_text("photos/0.png\nphotos/1.png\n")
    found = []
    for name, photos in (("folder", [folder]), ("list", [tmp_path / "list.txt"])):
        out = tmp_path / f"{name}.safetensors"
        arguments = ["export", stages["joint"], out, "--half", *(a for p in photos for a in ("--images", p))]
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        found.append(read_weights(out))
        assert {t.dtype for t in load_file(out).values() if t.is_floating_point()} == {torch.float16}
        assert out.stat().st_size < 0.6 * weights.stat().st_size
    fixed_length = read_weights(weights)
    assert not fixed_length.tables.z
    (table,) = found[0].tables.z
    # Codes that the photos need are likelier than the others, which keep a chance.
    assert max(table.frequencies) > min(table.frequencies) > 0
    assert found[0].tables == found[1].tables
    assert found[0].fingerprint == found[1].fingerprint != fixed_length.fingerprint


def test_export_command_refuses_invalid_photos(stages: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("no image")
    out = tmp_path / "out.safetensors"
    for photos, message in (
        ("empty", "contains no images"),
        ("missing", "no such folder or file"),
        ("bad.png", "not an image in a known format"),
    ):
        arguments = ["export", stages["joint"], out, "--images", tmp_path / photos]
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {tmp_path / photos}: {message}")
        assert result.stderr.count("\n") == 1
    assert not out.exists()

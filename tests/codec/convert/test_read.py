"""Untrusted files: no code in them is executed."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glc.codec.convert.convert import convert
from glc.codec.convert.read import open_source
from glc.errors import WeightsError
from tests.codec.convert.stand_ins import layouts, stand_ins


class Trap:
    """A pickle of it creates a file when it is read as Python reads pickles."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sprung,))


@pytest.mark.parametrize("place", ["state_dict", "beside", "callbacks", "alone"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_execute_is_refused(place: str, zipped: bool, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    tensors: dict[str, Any] = stand_ins(layouts()["taming"])
    content = {
        "state_dict": {"state_dict": {**tensors, "trap": trap}},
        "beside": {"state_dict": tensors, "hyper_parameters": trap},
        "callbacks": {"state_dict": tensors, "callbacks": {"ModelCheckpoint": [trap]}},
        "alone": trap,
    }[place]
    source, destination = tmp_path / "trap.ckpt", tmp_path / "x.safetensors"
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"trap\.ckpt: .*(cannot be|nothing was run)") as caught:
        convert(source, destination)
    assert "pathlib" in str(caught.value) or "getattr" in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    assert not destination.exists()
    torch.load(source, weights_only=False)  # the trap is one
    assert (tmp_path / "sprung").exists()


def test_an_old_lightning_checkpoint_may_name_its_callbacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Lightning wrote them when the VQGANs were trained: states of callbacks by their classes.
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    tensors = stand_ins(layouts()["taming"])
    tensors["loss.discriminator.main.0.weight"] = torch.zeros(8, 3, 4, 4)
    tensors["loss.perceptual_loss.lin0.model.1.weight"] = torch.zeros(1, 64, 1, 1)
    content = {
        "epoch": 12,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": tensors,
        "callbacks": {callback: {"best_model_path": "x.ckpt", "best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "lr_schedulers": [],
    }
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(content, tmp_path / "last.ckpt")
    assert module.__name__ not in sys.modules
    lines = convert(tmp_path / "last.ckpt", tmp_path / "vqgan.safetensors")
    assert any(line == "omitted: 2 tensors loss.* (training only)" for line in lines)
    assert "in state_dict" in lines[0]
    assert module.__name__ not in sys.modules


def test_non_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save(stand_ins(layouts()["taming"]), tmp_path / "whole.pth")
    save_file({"a": torch.zeros(100)}, tmp_path / "whole.safetensors")
    whole, safe = ((tmp_path / f"whole.{s}").read_bytes() for s in ("pth", "safetensors"))
    for name, content in {
        "text.pth": b"<html>not found</html>\n",
        "empty.pth": b"",
        "cut.pth": whole[: len(whole) // 2],
        "short.pth": whole[:10],
        "cut.safetensors": safe[:-4],
        "text.safetensors": b"hello, this is text",
        "empty.safetensors": b"",
        "cut_without_its_name": safe[:-4],
    }.items():
        (tmp_path / name).write_bytes(content)
    for name, content in {
        "list.pth": [torch.zeros(3)],
        "bare.pth": {"epoch": 3, "state_dict": {}},
        "tensor.pth": torch.zeros(3),
    }.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "folder").mkdir()
    valid = {"whole.pth", "whole.safetensors"}
    for name in {path.name for path in tmp_path.iterdir()} - valid | {"absent.pth"}:
        with pytest.raises(WeightsError) as caught:
            open_source(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: "), name
        assert "\n" not in message
        assert "weights_only" not in message


def test_tensors_stay_on_disk_until_they_are_used(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def own_memory() -> int:
        """Kilobytes that are not a view of a file."""
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1])

    for name, write in (("big.pth", torch.save), ("big.safetensors", save_file)):
        write({"big": torch.ones(1 << 24)}, tmp_path / name)  # 64 MB
        before = own_memory()
        source = open_source(tmp_path / name)
        assert source.shapes == {"big": (1 << 24,)}
        assert own_memory() - before < 16_000

"""scripts/train_small.py: pieces of checkpoints, and which stage comes next."""

import argparse
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.scripts import load_script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train_small")


def test_pieces_make_the_same_file_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "PIECE", 1000)
    checkpoint, pieces = tmp_path / "last.ckpt", tmp_path / "pieces"
    for size in (2500, 1001):
        data = torch.randint(256, (size,), dtype=torch.uint8).numpy().tobytes()
        checkpoint.write_bytes(data)
        script.split(checkpoint, pieces)
        parts = sorted(pieces.glob("*.part"))
        assert [part.stat().st_size for part in parts] == [1000] * (size // 1000) + [size % 1000]
        script.join(pieces, tmp_path / "again" / "last.ckpt")
        assert (tmp_path / "again" / "last.ckpt").read_bytes() == data

    parts[0].write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="copy them again"):
        script.join(pieces, tmp_path / "again" / "last.ckpt")
    parts[1].unlink()
    with pytest.raises(ValueError, match=parts[1].name):
        script.join(pieces, tmp_path / "again" / "last.ckpt")
    assert (tmp_path / "again" / "last.ckpt").read_bytes() == data


class Trainer:
    """Stands for `python -m glc.launch.train`: each call adds steps to the checkpoint of its stage."""

    def __init__(self, output: Path, per_call: int, planned: int) -> None:
        self.output, self.per_call, self.planned = output, per_call, planned
        self.calls: list[str] = []

    def __call__(self, command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        if "export" in command:
            self.calls.append(f"export {Path(command[4]).parts[-3]}")
            return subprocess.CompletedProcess(command, 0)
        stage = next(word for word in command if word.startswith("stage=")).removeprefix("stage=")
        self.calls.append(stage)
        path = self.output / "small" / stage / "checkpoints" / "last.ckpt"
        done = torch.load(path)["global_step"] if path.is_file() else 0
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = {"trainer": {"max_steps": self.planned}}
        steps = min(done + self.per_call, self.planned)
        torch.save({"global_step": steps, "glc": {"format": 1, "recipe": recipe}, "state_dict": {}}, path)
        return subprocess.CompletedProcess(command, 0)


def test_a_stage_follows_when_the_one_before_is_done(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tmp_path, per_call=60, planned=100)
    monkeypatch.setattr(script.subprocess, "run", trainer)
    arguments = argparse.Namespace(
        shards=tmp_path, weights=tmp_path, output=tmp_path, minutes=10.0, device="cpu", workers=1
    )
    arguments.steps, arguments.overrides, arguments.photos, arguments.pieces = {}, [], None, False

    assert script.train(arguments) == script.MORE
    assert trainer.calls == ["vqvae"]
    while script.train(arguments) == script.MORE:
        pass
    assert trainer.calls == ["vqvae", "vqvae", "transform", "transform", "joint", "joint", "export joint"]


def test_the_device_is_the_one_that_was_asked_for(script: ModuleType, tmp_path: Path) -> None:
    def accelerators(device: str) -> list[str]:
        arguments = argparse.Namespace(
            shards=tmp_path,
            weights=tmp_path,
            output=tmp_path,
            device=device,
            workers=1,
            steps={},
            overrides=[],
        )
        words = script.overrides("vqvae", arguments, 10)
        return [word for word in words if word.startswith("trainer.accelerator=")]

    assert accelerators("cpu") == ["trainer.accelerator=cpu"]
    assert accelerators("cuda") == ["trainer.accelerator=gpu"]
    assert accelerators("auto") == []

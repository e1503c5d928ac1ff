"""The checksum in checkpoints, and atomic saving."""

import errno
import random
import subprocess
import zipfile
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

import glc
from glc.errors import WeightsError
from glc.io import checkpoint
from glc.io.checkpoint import copy_to_memory, label, open_checkpoint, save_checkpoint, verify

CONTENT = {
    "state_dict": {"weight": torch.arange(5000).float()},
    "glc": {"format": 1, "recipe": {"seed": 3}},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "last.ckpt"
    save_checkpoint(CONTENT, path)
    return path


def test_checksum_does_not_affect_other_readers(saved: Path) -> None:
    with saved.open("rb") as file:
        assert verify(file, saved)
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]
    for mapped in (False, True):
        content = torch.load(saved, weights_only=True, mmap=mapped)
        assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_every_changed_byte_and_truncation_is_detected(saved: Path) -> None:
    good = saved.read_bytes()
    rng = random.Random(0)
    silent = 0
    content = len(good) - 73  # two bytes of the comment's length, the comment
    for place in [0, content - 1, len(good) - 1, *(rng.randrange(content) for _ in range(40))]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        saved.write_bytes(bad)
        with pytest.raises(WeightsError, match=r"last\.ckpt"):
            open_checkpoint(saved)
        try:
            torch.load(saved, weights_only=True)
            silent += 1
        except Exception:
            pass
    for size in (0, 1, 50, len(good) // 2, len(good) - 100):
        saved.write_bytes(good[:size])
        with pytest.raises(WeightsError, match=r"last\.ckpt"):
            open_checkpoint(saved)
    # What the checksum is for: torch alone loads most of these without a word.
    assert silent > 20


def test_files_of_other_programs_have_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "plain.ckpt"
    torch.save(CONTENT, path)
    with path.open("rb") as file:
        assert not verify(file, path)
    assert open_checkpoint(path).content["glc"]["format"] == 1


def test_full_disk_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    write = checkpoint._Hashing.write

    def full(self: Any, data: bytes) -> int:
        if self.file.tell() > 2000:
            self.failure = OSError(errno.ENOSPC, "No space left on device")
            raise self.failure
        return write(self, data)

    monkeypatch.setattr(checkpoint._Hashing, "write", full)
    with pytest.raises(OSError, match=r"No space left.*last\.ckpt") as caught:
        save_checkpoint({"state_dict": {"weight": torch.zeros(5000)}}, saved)
    assert caught.value.errno == errno.ENOSPC
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_open_checkpoint_has_stage_step_and_settings(tmp_path: Path) -> None:
    settings = {"stage": {"name": "joint", "module": {"_target_": "glc.training.joint.JointStage"}}}
    content = {**CONTENT, "global_step": 7, "glc": {"format": 1, "recipe": settings}}
    save_checkpoint(content, tmp_path / "last.ckpt")
    opened = open_checkpoint(tmp_path / "last.ckpt")
    assert (opened.step, opened.stage, opened.path) == (7, "joint", tmp_path / "last.ckpt")
    assert torch.equal(opened.state_dict["weight"], torch.arange(5000).float())
    assert open_checkpoint(opened) is opened


# What the configuration of version 0.1 names, and where it is now.
NAMES_OF_0_1 = {
    "glc.codec.export.read_codec": "glc.codec.weights.export.read_codec",
    "glc.losses.vq.CodebookLoss": "glc.losses.latent.CodebookLoss",
    "glc.training.callbacks.average.MovingAverage": "glc.training.callbacks.ema.EMA",
    "glc.training.callbacks.checkpoint.LastCheckpoint": "glc.training.checkpoints.LastCheckpoint",
    "glc.training.callbacks.codebook.CodebookCare": "glc.training.callbacks.codebook.CodebookRestart",
    "glc.training.callbacks.histograms.CodebookHistograms": "glc.training.callbacks.codebook."
    "CodebookHistograms",
    "glc.training.callbacks.panel.ReconstructionPanel": "glc.training.callbacks.media.ReconstructionPanel",
    "glc.training.callbacks.time_limit.TimeLimit": "glc.training.stopping.StopAfterStep",
    "glc.training.joint.JointStage": "glc.training.stages.joint.JointStage",
    "glc.training.restoration.RestorationStage": "glc.training.stages.restoration.RestorationStage",
    "glc.training.saving.SealedCheckpointIO": "glc.training.checkpoints.ChecksumCheckpointIO",
    "glc.training.schedule.WarmupCosine": "glc.training.schedule.WarmupCosine",
    "glc.training.stage.Optimization": "glc.training.stages.base.Optimization",
    "glc.training.stylization.StylizationStage": "glc.training.stages.stylization.StylizationStage",
    "glc.training.transform.TransformStage": "glc.training.stages.transform.TransformStage",
    "glc.training.vqvae.VQVAEStage": "glc.training.stages.vqvae.VQVAEStage",
}


def test_class_names_of_version_0_1_are_updated(tmp_path: Path) -> None:
    nodes = [{"_target_": name, "seed": 1} for name in NAMES_OF_0_1]
    content = {**CONTENT, "glc": {"format": 1, "recipe": {"nested": {"list": nodes}}}}
    save_checkpoint(content, tmp_path / "old.ckpt")
    found = open_checkpoint(tmp_path / "old.ckpt").settings["nested"]["list"]
    assert [node["_target_"] for node in found] == list(NAMES_OF_0_1.values())
    for name in NAMES_OF_0_1.values():
        assert callable(resolve_name(name))


def test_settings_of_version_0_1_have_the_present_keys(tmp_path: Path) -> None:
    own = {"_target_": "mine.Loss", "views": True, "revive_every": 1}
    module = {"_target_": "glc.training.vqvae.VQVAEStage", "unquantized": 0.5, "own": own}
    codebooks = {"_target_": "glc.training.callbacks.codebook.CodebookCare", "revive_every": 50}
    recipe = {
        "perceptual": {"_target_": "glc.losses.reconstruction.load_perceptual", "views": True},
        "callbacks": {"codebooks": codebooks},
        "stage": {"unquantized": 0.5, "module": module},
    }
    save_checkpoint({**CONTENT, "glc": {"format": 1, "recipe": recipe}}, tmp_path / "old.ckpt")
    found = open_checkpoint(tmp_path / "old.ckpt").settings
    perceptual, codebooks, stage = found["perceptual"], found["callbacks"]["codebooks"], found["stage"]
    assert perceptual["augment"] is True
    assert codebooks["restart_every"] == 50
    assert stage["quantizer_bypass"] == stage["module"]["quantizer_bypass"] == 0.5
    assert stage["module"]["own"] == own  # other classes' arguments are unchanged
    present = {*perceptual, *codebooks, *stage, *stage["module"]}
    assert not {"views", "revive_every", "unquantized"} & present


def test_checkpoints_name_version_and_commit() -> None:
    recorded = label({"a": 1})
    assert (recorded["version"], recorded["recipe"]) == (glc.__version__, {"a": 1})
    root = Path(glc.__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        assert recorded["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_copy_to_memory_is_independent_of_the_file(saved: Path) -> None:
    opened = open_checkpoint(saved)
    tensors = opened.state_dict
    copy_to_memory(opened.content)
    with saved.open("r+b") as file:  # a mapping would show this
        file.write(bytes(saved.stat().st_size))
    assert opened.state_dict is tensors
    assert torch.equal(tensors["weight"], torch.arange(5000).float())

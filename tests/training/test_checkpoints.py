"""Saving checkpoints, choosing the one to resume from, and per-device codebook state."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from glc.errors import WeightsError
from glc.io.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from glc.training.callbacks.codebook import CodebookRestart
from glc.training.checkpoints import (
    ChecksumCheckpointIO,
    LastCheckpoint,
    SavingError,
    keep_previous,
    open_last,
)
from glc.training.loggers import RowLogger
from glc.training.stages.base import Stage


def write(path: Path, step: int) -> None:
    save_checkpoint(
        {"state_dict": {}, "glc": {"format": 1, "recipe": {}}, "global_step": step, "w": torch.ones(999)},
        path,
    )


def step_of(found: Path | Checkpoint | None) -> int:
    assert found is not None
    return open_checkpoint(found).step


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's checkpoints after its second save."""
    write(tmp_path / "last.ckpt", 1)
    keep_previous(tmp_path / "last.ckpt")
    write(tmp_path / "last.ckpt", 2)
    return tmp_path


def test_previous_checkpoint_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_of(open_last(folder)) == 2
    assert step_of(folder / "previous.ckpt") == 1
    keep_previous(folder / "last.ckpt")
    # A kill here, between link and save, loses nothing.
    assert step_of(folder / "last.ckpt") == step_of(folder / "previous.ckpt") == 2
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]

    def no_links(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    write(folder / "last.ckpt", 3)
    keep_previous(folder / "last.ckpt")
    assert step_of(open_last(folder)) == 3


def test_corrupt_checkpoint_falls_back_to_the_previous_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / "last.ckpt")
    found = open_last(folder)
    assert step_of(found) == 1
    assert "last.ckpt: corrupt" in caplog.text
    assert "previous.ckpt" in caplog.text
    # The next save must not replace the intact checkpoint by the corrupt one.
    keep_previous(folder / "last.ckpt")
    assert step_of(folder / "previous.ckpt") == 1
    assert (folder / "last.ckpt.damaged").is_file()


def test_other_ranks_do_not_rename_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(folder / "last.ckpt")
    before = sorted(folder.iterdir())
    monkeypatch.setenv("RANK", "1")
    assert step_of(open_last(folder)) == 1
    assert sorted(folder.iterdir()) == before


def test_two_corrupt_checkpoints_raise(folder: Path, tmp_path: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        damage(folder / name)
    with pytest.raises(WeightsError, match=r"last\.ckpt: corrupt.*previous\.ckpt: corrupt"):
        open_last(folder)
    assert open_last(tmp_path / "nowhere") is None


def test_failed_write_raises_saving_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SavingError, match=r"last\.ckpt.*rerun with resume=last"):
        ChecksumCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "file" / "last.ckpt")


def test_opened_checkpoint_is_returned_once_without_reading_the_file(folder: Path) -> None:
    io = ChecksumCheckpointIO()
    io.opened = opened = open_last(folder)
    assert opened is not None
    opened.path.unlink()
    assert io.load_checkpoint(opened.path)["global_step"] == 2
    assert io.opened is None
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(opened.path)
    assert io.load_checkpoint(folder / "previous.ckpt", weights_only=True)["global_step"] == 1


def test_no_save_between_the_batches_of_a_step(tmp_path: Path) -> None:
    callback = LastCheckpoint(tmp_path, every_n_steps=2)
    saved: list[int] = []
    trainer: Any = SimpleNamespace(
        global_step=4,
        is_last_batch=False,
        is_global_zero=True,
        callback_metrics={},
        log_every_n_steps=1,
        fast_dev_run=0,
        save_checkpoint=lambda *_, **__: saved.append(trainer.global_step),
    )
    module: Any = torch.nn.Linear(1, 1)
    callback.on_train_start(trainer, module)  # resumed at step 4
    callback.on_train_batch_end(trainer, module, None, None, 0)  # the first of two batches of step 5
    assert not saved
    trainer.global_step = 6
    callback.on_train_batch_end(trainer, module, None, None, 3)
    callback.on_train_batch_end(trainer, module, None, None, 4)
    assert saved == [6]


class Device(Stage):
    """A stage on one of several devices; `all_gather` returns the given tensors."""

    def __init__(self, everyone: dict[int, Tensor]) -> None:
        torch.nn.Module.__init__(self)
        self.everyone = everyone

    def all_gather(self, data: Any, *_: Any, **__: Any) -> Tensor:
        return torch.stack([self.everyone[rank] for rank in sorted(self.everyone)])

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


def test_each_device_restores_its_own_vectors() -> None:
    vectors = {rank: torch.rand(3, 5, 2) for rank in range(2)}  # batches, vectors, dimensions
    counts = {rank: torch.randint(9, (4,)) for rank in range(2)}
    saved: dict[str, Any] = {}
    for rank in (1, 0):  # rank 0's state is written
        restart = CodebookRestart()
        restart._vectors["c"], restart._counts["c"] = list(vectors[rank]), counts[rank]
        saved = {"callbacks": {restart.state_key: restart.state_dict()}}
        strategy = SimpleNamespace(reduce=lambda *_, **__: counts[0] + counts[1])
        restart.on_save_checkpoint(SimpleNamespace(strategy=strategy), Device(vectors), saved)  # type: ignore
    restored = []
    for rank in range(2):
        restart = CodebookRestart()
        restart.load_state_dict(saved["callbacks"][restart.state_key])
        trainer: Any = SimpleNamespace(global_step=7, global_rank=rank, is_global_zero=rank == 0)
        restart.on_train_start(trainer, Device(vectors))
        assert torch.equal(torch.stack(restart._vectors["c"]), vectors[rank])
        restored.append(restart._counts["c"])
    assert torch.equal(restored[0] + restored[1], counts[0] + counts[1])


def test_rows_survive_a_kill_during_a_header_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RowLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"loss": 0.5 + step}, step)
    path = tmp_path / "csv" / "version_0" / "metrics.csv"
    assert len(path.read_text().splitlines()) == 4  # written at once, without a flush

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", killed)
        with pytest.raises(KeyboardInterrupt):
            logger.log_metrics({"loss": 4.0, "new": 1.0}, 3)
    with path.open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["0.5", "1.5", "2.5"]

"""The checksum inside checkpoints: what it catches, and that files stay whole."""

import errno
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from glc.errors import WeightsError
from glc.io import checkpoint
from glc.io.checkpoint import read_checkpoint, save_sealed, verify

CONTENT = {
    "state_dict": {"weight": torch.arange(5000).float()},
    "glc": {"format": 1, "recipe": {"seed": 3}},
}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "last.ckpt"
    save_sealed(CONTENT, path)
    return path


def test_a_sealed_file_is_one_for_all_readers(sealed: Path) -> None:
    with sealed.open("rb") as file:
        assert verify(file, sealed)
    assert [path.name for path in sealed.parent.iterdir()] == ["last.ckpt"]
    for mapped in (False, True):
        content = torch.load(sealed, weights_only=True, mmap=mapped)
        assert torch.equal(content["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    with zipfile.ZipFile(sealed) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_every_changed_byte_of_the_content_is_seen(sealed: Path) -> None:
    good = sealed.read_bytes()
    rng = random.Random(0)
    silent = 0
    content = len(good) - 73  # two bytes of the comment's length, the comment
    for place in [0, content - 1, len(good) - 1, *(rng.randrange(content) for _ in range(40))]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        sealed.write_bytes(bad)
        with pytest.raises(WeightsError, match=r"last\.ckpt"):
            read_checkpoint(sealed)
        try:
            torch.load(sealed, weights_only=True)
            silent += 1
        except Exception:
            pass
    # What the checksum is for: torch alone loads most of these without a word.
    assert silent > 20


def test_files_that_were_cut_short(sealed: Path) -> None:
    good = sealed.read_bytes()
    for size in (0, 1, 50, len(good) // 2, len(good) - 100):
        sealed.write_bytes(good[:size])
        with pytest.raises(WeightsError, match=r"last\.ckpt"):
            read_checkpoint(sealed)


def test_files_of_other_makers_have_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "plain.ckpt"
    torch.save(CONTENT, path)
    with path.open("rb") as file:
        assert not verify(file, path)
    assert read_checkpoint(path)["glc"]["format"] == 1


def test_a_full_disk_leaves_what_was_there(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sealed.read_bytes()
    write = checkpoint._Hashing.write

    def full(self: Any, data: bytes) -> int:
        if self.file.tell() > 2000:
            self.failure = OSError(errno.ENOSPC, "No space left on device")
            raise self.failure
        return write(self, data)

    monkeypatch.setattr(checkpoint._Hashing, "write", full)
    with pytest.raises(OSError, match=r"No space left.*last\.ckpt") as caught:
        save_sealed({"state_dict": {"weight": torch.zeros(5000)}}, sealed)
    assert caught.value.errno == errno.ENOSPC
    assert sealed.read_bytes() == before
    assert [path.name for path in sealed.parent.iterdir()] == ["last.ckpt"]

"""Shards to code."""

import os
from pathlib import Path

import pytest

from tests.jobs.stand_ins import write_tar


@pytest.fixture(autouse=True)
def not_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk matters only after a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of five samples; one sample fails, one has nothing to code."""
    for shard in range(3):
        members = []
        for i in range(5):
            text = b"bad" if (shard, i) == (1, 2) else f"text {shard} {i}".encode()
            suffix = "csv" if (shard, i) == (2, 0) else "txt"
            members += [(f"{shard}-{i}.{suffix}", text), (f"{shard}-{i}.json", b"{}")]
        write_tar(tmp_path / "in" / f"in-{shard}.tar", members)
    return tmp_path / "in"

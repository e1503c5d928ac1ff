"""Atomic writes: concurrent readers, and failures."""

import errno
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from glc.errors import WeightsError
from glc.io import atomic
from glc.io.atomic import check_destination, replacing, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_replaced_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / ("a" * 255)  # the longest name
    write_bytes(path, b"old")
    with replacing(path) as partial:
        partial.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        assert partial.parent == path.parent
        partial.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == [path.name]


def test_text_is_utf8_also_with_other_bytes_of_file_names(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\n" + os.fsdecode(b"x\xff\r\n"))
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\nx\\udcff\r\n"


def test_error_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    for sole_writer in (False, True):
        with suppress(KeyError), replacing(path, sole_writer=sole_writer) as partial:
            partial.write_bytes(b"half")
            raise KeyError("mine")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


KILLED = """
import os, signal, sys
from glc.io.atomic import replacing
with replacing(sys.argv[1], sole_writer=sys.argv[2] == "sole") as partial:
    partial.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("writer", ["sole", "one of several"])
def test_killed_process_keeps_the_old_file(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, path, writer], check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.read_bytes() == b"old"
    # A sole writer writes over what it left before.
    assert len(names(tmp_path)) == (2 if writer == "sole" else 3)
    with replacing(path, sole_writer=writer == "sole") as partial:
        assert partial.read_bytes() == (b"half" if writer == "sole" else b"")
        partial.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert len(names(tmp_path)) == (1 if writer == "sole" else 3)


def test_an_error_names_the_destination(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_bytes(tmp_path / "folder", b"x")
    assert str(tmp_path / "folder") in str(caught.value)
    assert ".part" not in str(caught.value)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'") as full,
        replacing(tmp_path / "a.bin"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError) as other, replacing(tmp_path / "a.bin"):
        (tmp_path / "source").read_bytes()
    assert other.value.filename == str(tmp_path / "source")  # an error about another file stays
    assert names(tmp_path) == ["folder"]


def test_existing_file_is_kept_without_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"new", overwrite=False)
    with pytest.raises(FileExistsError, match=r"exists; replace it with --force: '.*a\.bin'"):
        write_text(path, "newer", overwrite=False)
    assert path.read_bytes() == b"new"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    write_bytes(tmp_path / "link", b"x", overwrite=False)
    assert (tmp_path / "nowhere").read_bytes() == b"x"
    assert names(tmp_path) == ["a.bin", "link", "nowhere"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_permissions_follow_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.bin") as partial:
            partial.unlink()
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries write
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o666 & ~mask


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target.bin"
    write_bytes(target, b"old")
    link = tmp_path / "link.bin"
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["target.bin"]


def test_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = atomic._sync, os.replace
    monkeypatch.setattr(atomic, "_sync", lambda path: (done.append(path.name[:5]), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), rename(a, b)))
    write_bytes(tmp_path / "a.bin", b"x", fsync=True)
    assert done == [".glc-", "rename", tmp_path.name[:5]]
    write_bytes(tmp_path / "a.bin", b"y")
    assert done[3:] == ["rename"]


def test_destinations_are_checked_before_any_work(tmp_path: Path) -> None:
    source, out = tmp_path / "in.ckpt", tmp_path / "out.bin"
    check_destination(out, source, force=False)
    write_bytes(source, b"x")
    write_bytes(out, b"y")
    check_destination(out, source, force=True)
    with pytest.raises(FileExistsError, match=r"out\.bin: exists; replace it with --force"):
        check_destination(out, source, force=False)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(WeightsError, match="link: is the source file; give another output name"):
        check_destination(tmp_path / "link", source, force=True)
    with pytest.raises(WeightsError, match="is a folder; give a file name"):
        check_destination(tmp_path, source, force=True)

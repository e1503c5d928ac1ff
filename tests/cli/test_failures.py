"""Failures: one line that names the file, an exit code, and no partial output."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from glc.codec.codec import Codec
from tests.cli.conftest import Glc, image, tree
from tests.programs import GLC, start


def test_a_bad_file_does_not_stop_the_others(glc: Glc) -> None:
    for name in ("in/a.png", "in/c.png"):
        image(name)
    Path("in/b.png").write_bytes(b"no image")
    result = glc("compress", "in", "nowhere", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr == "nowhere: no such file\nin/b.png: not an image in a known format\n"
    assert len(result.stdout.splitlines()) == 2
    assert tree("out") == ["in/a.glc", "in/c.glc"]
    Path("out/in/a.glc").write_bytes(b"GLC\x01 no more")
    result = glc("decompress", "out", "-o", "back")
    assert result.exit_code == 1
    assert result.stderr == "out/in/a.glc: truncated file: 12 bytes; a .glc file has at least 18\n"
    assert tree("back") == ["in/c.png"]


@pytest.mark.parametrize("name", ["missing.png", "broken-link.png", "text.png", "cut.png"])
def test_a_single_bad_file_exits_with_2_and_writes_nothing(glc: Glc, name: str) -> None:
    os.symlink("gone.png", "broken-link.png")
    Path("text.png").write_text("no image")
    Path("cut.png").write_bytes(image("a.png").read_bytes()[:-100])
    before = tree(".")
    result = glc("compress", name, "-o", "out/x.glc")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{name}: ")
    assert result.stderr.count("\n") == 1
    assert tree(".") == before
    assert not Path("out").exists()


def test_a_folder_without_images_is_an_error(glc: Glc) -> None:
    Path("in").mkdir()
    Path("in/notes.txt").write_text("")
    for name, noun in (("compress", "images"), ("decompress", ".glc files")):
        result = glc(name, "in")
        assert result.exit_code == 1
        assert result.stderr == f"in: folder contains no {noun}\n"


def test_existing_files_are_kept_without_force(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    image("a.png")
    Path("a.glc").write_bytes(b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(Codec, "compress", lambda *_, **__: pytest.fail("checked too late"))
        result = glc("compress", "a.png")
    assert result.exit_code == 2
    assert result.stderr == "a.png: a.glc exists; replace it with --force\n"
    assert Path("a.glc").read_bytes() == b"mine"
    image("b.png")
    assert glc("compress", "a.png", "b.png").exit_code == 1
    assert Path("a.glc").read_bytes() == b"mine"
    assert Path("b.glc").is_file()
    assert glc("compress", "a.png", "--force").exit_code == 0
    assert Path("a.glc").read_bytes() != b"mine"


def test_a_file_created_during_the_work_is_kept(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = Codec.compress

    def slow(self: Codec, *arguments: Any, **options: Any) -> bytes:
        Path("a.glc").write_bytes(b"mine")
        return compress(self, *arguments, **options)

    monkeypatch.setattr(Codec, "compress", slow)
    image("a.png")
    result = glc("compress", "a.png")
    assert result.exit_code == 2
    assert result.stderr == "a.png: a.glc: exists; replace it with --force\n"
    assert tree(".") == ["a.glc", "a.png"]
    assert Path("a.glc").read_bytes() == b"mine"


def test_two_inputs_never_share_an_output(glc: Glc) -> None:
    for name in ("in/a.jpg", "in/a.png"):
        image(name)
    result = glc("compress", "in", "--force")
    assert result.exit_code == 1
    assert result.stderr == "in/a.png: in/a.glc is already the output of in/a.jpg\n"
    assert tree("in") == ["a.glc", "a.jpg", "a.png"]


def test_an_input_is_never_replaced(glc: Glc) -> None:
    image("a.png").rename("a.glc")
    image("b.png").rename("a")
    before = Path("a.glc").read_bytes()
    result = glc("compress", "a.glc", "-o", "a.glc", "--force")
    assert result.exit_code == 2
    assert "a.glc is also an input" in result.stderr
    assert glc("compress", "a", "a.glc", "--force").exit_code == 1
    assert Path("a.glc").read_bytes() == before
    assert Path("a.glc.glc").is_file()


def test_outputs_that_are_not_regular_files_are_refused(glc: Glc) -> None:
    image("a.png")
    os.mkfifo("pipe")
    Path("file").write_text("")
    Path("folder.glc").mkdir()
    for output, message in (
        ("pipe", "pipe is not a regular file"),
        ("file/a.glc", "file is not a folder"),
        ("folder.glc/../file/b/c.glc", "file is not a folder"),
    ):
        result = glc("compress", "a.png", "--force", "-o", output)
        assert result.exit_code == 2
        assert message in result.stderr
    image("folder.png")
    result = glc("compress", "folder.png", "--force")
    assert result.exit_code == 2
    assert result.stderr == "folder.png: folder.glc is a folder\n"


def test_a_read_only_folder_is_found_before_the_work(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    image("a.png")
    monkeypatch.setattr(Codec, "compress", lambda *_, **__: pytest.fail("checked too late"))
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    result = glc("compress", "a.png", "-o", "new/a.glc")
    assert result.exit_code == 2
    assert result.stderr.startswith("a.png: new/a.glc cannot be written: no permission to write in ")


def write_half(path: Path, data: bytes) -> None:
    """Write half of the data and fail, like a full disk."""
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_partial_file(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        image(name)
    Path("a.glc").write_bytes(b"mine")
    monkeypatch.setattr(Path, "write_bytes", write_half)
    result = glc("compress", "a.png", "--force")
    assert result.exit_code == 2
    assert result.stderr == "a.png: a.glc: No space left on device\n"
    assert glc("compress", "a.png", "b.png", "--force").exit_code == 1
    assert tree(".") == ["a.glc", "a.png", "b.png"]
    assert Path("a.glc").read_bytes() == b"mine"


@pytest.mark.parametrize("where", ["os.replace", "glc.codec.codec.Codec.compress"])
def test_an_interruption_leaves_nothing_behind(glc: Glc, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    for name in ("a.png", "b.png"):
        image(name)

    monkeypatch.setattr(where, Mock(side_effect=KeyboardInterrupt))
    result = glc("compress", "a.png", "b.png")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted"
    assert tree(".") == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ..."),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_running_out_of_memory_is_one_line(
    glc: Glc, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    image("a.png")
    for where in ("glc.codec.codec.Codec.compress", "PIL.ImageFile.ImageFile.load"):
        with monkeypatch.context() as patch:
            patch.setattr(where, Mock(side_effect=error))
            result = glc("compress", "a.png")
        assert (result.exit_code, result.stderr) == (2, "a.png: out of memory\n")
    assert tree(".") == ["a.png"]


def test_an_input_deleted_during_the_work_is_reported(glc: Glc, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        glc("compress", image(f"{name}.png"))
    inner = Codec.decompress

    def remove(self: Codec, *arguments: Any, **options: Any) -> Image.Image:
        Path("b.glc").unlink()
        return inner(self, *arguments, **options)

    monkeypatch.setattr(Codec, "decompress", remove)
    result = glc("decompress", "a.glc", "b.glc", "-o", "out")
    assert result.exit_code == 1
    assert result.stderr == "b.glc: No such file or directory\n"
    assert tree("out") == ["a.png"]


def damaged(models: Path, tmp_path: Path) -> str:
    data = bytearray((models / "small.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    return "damaged.safetensors"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda *_: ["--model", "large"], "there is no model 'large' (available: other, small)"),
        (lambda *_: ["--model", "no/such.safetensors"], "no/such.safetensors: no such weights file"),
        (lambda *_: ["--model", "a.png"], "a.png: not a safetensors file"),
        (lambda *paths: ["--model", damaged(*paths)], "damaged.safetensors: corrupt: the content does not"),
        (lambda *_: ["--device", "abacus"], "device 'abacus' is not available"),
    ],
)
def test_models_and_devices_are_checked_before_any_work(
    glc: Glc, models: Path, tmp_path: Path, arguments: Callable[..., list[str]], message: str
) -> None:
    glc("compress", image("a.png"))
    image("b.png")
    options = arguments(models, tmp_path)
    for name in (["compress", "a.png", "b.png", "--force"], ["decompress", "a.glc", "a.glc", "--force"]):
        before = {path: Path(path).read_bytes() for path in tree(".")}
        result = glc(*name, *options)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(f"Error: {message}")
        assert {path: Path(path).read_bytes() for path in tree(".")} == before


def test_a_terminal_shows_a_progress_bar_for_several_files(glc: Glc) -> None:
    for name in ("a.png", "b.png"):
        image(name)
    Path("c.png").write_bytes(b"no image")
    terminal, end = pytest.importorskip("pty").openpty()
    pytest.importorskip("termios").tcsetwinsize(end, (24, 80))
    done = start([*GLC, "compress", "."], terminal=os.ttyname(end), folder=Path.cwd())
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # Linux reports the end as an error
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert done.returncode == 1
    assert b"3/3" in shown
    assert b"c.png: not an image" in shown
    assert len(done.stdout.splitlines()) == 2

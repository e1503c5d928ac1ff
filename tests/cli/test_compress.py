"""`glc compress`: output files and their paths."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import glc as library
from glc.codec.bitstream import unpack
from tests.cli.conftest import Glc, image, tree


def bpp(file: str | Path) -> float:
    data = Path(file).read_bytes()
    header, _ = unpack(data)
    return 8 * len(data) / (header.width * header.height)


def test_the_file_is_written_next_to_the_image(glc: Glc, models: Path) -> None:
    image("photo.png", 64, 96)
    result = glc("compress", "photo.png", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    data = Path("photo.glc").read_bytes()
    codec = library.load(models / "small.safetensors", "cpu")
    assert data == codec.compress("photo.png", 50)
    expected = f"photo.png -> photo.glc: {len(data):,} bytes, {8 * len(data) / (64 * 96):.4f} bpp\n"
    assert result.stdout == expected
    assert result.stderr == ""
    assert tree(".") == ["photo.glc", "photo.png"]


def test_quality_model_and_targets_reach_the_codec(glc: Glc, models: Path) -> None:
    image("photo.png", 128, 128)
    codec = library.load(models / "other.safetensors", "cpu")
    for model in ("other", models / "other.safetensors"):
        assert glc("compress", "photo.png", "--model", model, "--quality", 12.5, "--force").exit_code == 0
        assert Path("photo.glc").read_bytes() == codec.compress("photo.png", 12.5)
    low, high = (len(codec.compress("photo.png", quality)) for quality in (0, 100))
    target = (low + high) // 2
    assert glc("compress", "photo.png", "--target-size", target, "-o", "size.glc").exit_code == 0
    assert 0.97 * target <= Path("size.glc").stat().st_size <= target
    rate_index = 8 * target / 128**2
    assert glc("compress", "photo.png", "--target-bpp", rate_index, "-o", "rate.glc").exit_code == 0
    assert 0.97 * rate_index <= bpp("rate.glc") <= rate_index


def test_a_target_that_no_quality_meets(glc: Glc) -> None:
    image("photo.png")
    small = glc("compress", "photo.png", "--target-size", 20)
    assert small.exit_code == 2
    assert small.stderr.startswith("photo.png: the target is 20 bytes; the smallest file has ")
    assert tree(".") == ["photo.png"]
    large = glc("compress", "photo.png", "--target-size", 100_000)
    assert large.exit_code == 0
    assert large.stderr.startswith("photo.png: note: ")
    assert "the largest file below 100000 bytes" in large.stderr
    assert large.stderr.count("\n") == 1


def test_folders_keep_their_structure_and_quiet_prints_nothing(glc: Glc) -> None:
    for name in ("a.png", "sub/b ö.JPG", "sub/deep/c.webp", ".hidden/x.png", "sub/.y.png"):
        image(f"in/{name}")
    Path("in/notes.txt").write_text("no image")
    result = glc("compress", "in", "-o", "new/out", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert tree("new/out") == ["a.glc", "sub/b ö.glc", "sub/deep/c.glc"]
    assert glc("compress", "in/sub").exit_code == 0
    assert tree("in/sub") == [".y.png", "b ö.JPG", "b ö.glc", "deep/c.glc", "deep/c.webp"]


def test_several_inputs_share_a_folder_under_their_names(glc: Glc) -> None:
    for name in ("one/a.png", "two/a.png", "a.png"):
        image(name)
    assert glc("compress", "one", "two", "a.png", "-o", "out").exit_code == 0
    assert tree("out") == ["a.glc", "one/a.glc", "two/a.glc"]
    assert glc("compress", "one/a.png", "a.png").exit_code == 0
    assert Path("one/a.glc").is_file()
    assert Path("a.glc").is_file()


def test_output_of_a_single_file_may_be_a_file_or_a_folder(glc: Glc) -> None:
    image("-a.b.png")
    Path("there").mkdir()
    assert glc("compress", "-o", "new/name", "--", "-a.b.png").exit_code == 0
    assert glc("compress", "-o", "there", "--", "-a.b.png").exit_code == 0
    assert glc("compress", "-o", "made/", "./-a.b.png").exit_code == 0
    assert tree(".") == ["-a.b.png", "made/-a.b.glc", "new/name", "there/-a.b.glc"]
    # A suffix that is not an image's is kept.
    image("photo.png").rename("photo.2024")
    assert glc("compress", "photo.2024").exit_code == 0
    assert Path("photo.2024.glc").is_file()


def test_links_are_followed_once(glc: Glc) -> None:
    image("in/sub/a.png")
    image("elsewhere/b.png")
    os.symlink("..", "in/sub/loop")
    os.symlink("../elsewhere", "in/linked")
    os.symlink("../elsewhere/b.png", "in/c.png")
    assert glc("compress", "in", "-o", "out").exit_code == 0
    assert tree("out") == ["c.glc", "linked/b.glc", "sub/a.glc"]


def test_standard_streams(glc: Glc, models: Path) -> None:
    image("photo.png")
    data = library.load(models / "small.safetensors", "cpu").compress("photo.png")
    source = Path("photo.png").read_bytes()
    result = glc("compress", "-", stdin=source)
    assert result.exit_code == 0
    assert result.stdout_bytes == data
    assert result.stderr.startswith("standard input -> standard output: ")
    assert glc("compress", "photo.png", "-o", "-").stdout_bytes == data
    assert glc("compress", "-", "-o", "x.glc", stdin=source).exit_code == 0
    assert Path("x.glc").read_bytes() == data
    result = glc("compress", "-", "--quiet", stdin=b"no image")
    assert (result.exit_code, result.stdout_bytes) == (2, b"")
    assert result.stderr == "standard input: not an image in a known format\n"


def test_pipes_between_processes(glc: Glc, models: Path) -> None:
    def separately(*words: str, stdin: bytes) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "glc", *words]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)

    small = separately("compress", "-", "--quiet", stdin=image("photo.png", 33, 65).read_bytes())
    assert (small.returncode, small.stderr) == (0, b"")
    large = glc("decompress", "-", stdin=small.stdout)
    assert large.exit_code == 0
    assert Image.open(io.BytesIO(large.stdout_bytes)).size == (65, 33)
    bad = separately("decompress", "-", stdin=small.stdout[:-1])
    assert (bad.returncode, bad.stdout) == (2, b"")
    assert bad.stderr.startswith(b"standard input: corrupt or truncated file: ")
    assert bad.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "compress",
        "compress a.png --quality 101",
        "compress a.png --quality -1",
        "compress a.png --quality nan",
        "compress a.png --quality 50 --target-bpp 1",
        "compress a.png --target-size 500 --target-bpp 1",
        "compress a.png --target-bpp 0",
        "compress a.png --target-bpp inf",
        "compress a.png --target-bpp nan",
        "compress a.png --target-bpp 1e308",
        "compress a.png --target-size 0",
        "compress a.png -o b.png",
        "compress a.png -",
        "compress a.png a.png -o -",
        "compress . -o -",
        "compress a.png a.png -o a.png",
        "compress . -o a.png",
        "compress - -o ./",
        "decompress a.png --max-pixels 0",
        "decompress a.png -o a.jpg",
    ],
)
def test_usage_errors_are_reported_before_any_work(glc: Glc, words: str) -> None:
    before = image("a.png").read_bytes()
    result = glc(*words.split())
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""
    assert tree(".") == ["a.png"]
    assert Path("a.png").read_bytes() == before


def test_a_region_of_interest_makes_an_ordinary_smaller_file(glc: Glc, models: Path) -> None:
    image("photo.png", 128, 192)
    Image.fromarray(np.arange(192, dtype=np.uint8)[None].repeat(128, 0)).save("mask.png")
    assert glc("compress", "photo.png", "-o", "plain.glc").exit_code == 0
    assert glc("compress", "photo.png", "--roi", "mask.png").exit_code == 0
    data = Path("photo.glc").read_bytes()
    mask = np.arange(192)[None].repeat(128, 0).astype(np.float32) / 255
    assert data == library.load(models / "small.safetensors", "cpu").compress("photo.png", roi=mask)
    assert len(data) < len(Path("plain.glc").read_bytes())
    assert glc("decompress", "photo.glc", "-o", "again.png").exit_code == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: image("mask.png", 40, 51), "mask.png (mask): 51 x 40 pixels, the image 50 x 40; make it of"),
        (lambda: Image.new("L", (50, 40)).save("mask.png"), "mask.png (mask): black everywhere"),
        (lambda: Path("mask.png").write_bytes(b"no image"), "mask.png (mask): "),
        (lambda: None, "mask.png (mask): no such file"),
    ],
)
def test_a_bad_mask_is_one_line_and_writes_nothing(
    glc: Glc, make: Callable[[], object], message: str
) -> None:
    image("photo.png")
    make()
    before = tree(".")
    result = glc("compress", "photo.png", "--roi", "mask.png")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert tree(".") == before

"""`--keep-metadata`: EXIF, ICC profile and XMP through a file beside the .glc file."""

import errno
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Glc, image
from tests.oddities import CHART, P3, decode_srgb, exif, from_linear, grey_profile, jpeg, rgb_profile

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" dc:title="Quay"/></x:xmpmeta>'
PROFILE = rgb_profile(P3, None)


@pytest.fixture
def photo(glc: Glc) -> Path:
    """A photograph with everything, turned by EXIF."""
    Path("photo.jpg").write_bytes(jpeg(CHART, exif=exif(6), icc_profile=PROFILE, xmp=XMP))
    return Path("photo.jpg")


def size_told(line: str) -> int:
    return int(line.split(" -> ")[1].split(": ")[1].split(" bytes")[0].replace(",", ""))


def test_blocks_are_carried_and_counted(glc: Glc, photo: Path) -> None:
    plain = glc("compress", photo, "-o", "plain.glc")
    assert not Path("plain.glc.meta").exists()
    kept = glc("compress", photo, "-o", "kept.glc", "--keep-metadata")
    assert Path("kept.glc").read_bytes() == Path("plain.glc").read_bytes()
    beside = Path("kept.glc.meta").stat().st_size
    assert size_told(kept.stdout) == size_told(plain.stdout) + beside
    assert f"({beside:,} of metadata)" in kept.stdout
    assert f"metadata    {beside:,} bytes" in glc("info", "kept.glc").stdout
    # Other programs read the file as a PNG.
    blocks = Image.open("kept.glc.meta", formats=["PNG"])
    blocks.load()
    assert blocks.info["icc_profile"] == PROFILE
    assert blocks.info["exif"] == exif(6)
    assert blocks.info["XML:com.adobe.xmp"].encode() == XMP

    assert glc("decompress", "kept.glc", "--keep-metadata").exit_code == 0
    assert glc("decompress", "plain.glc").exit_code == 0
    found, srgb = Image.open("kept.png"), Image.open("plain.png")
    assert srgb.info == {"srgb": 0}
    assert found.size == srgb.size == (32, 48)
    assert found.info["icc_profile"] == PROFILE
    assert found.info["xmp"] == XMP.replace(b'"6"', b'"1"')
    assert found.getexif()[0x0112] == 1
    assert found.getexif()[0x010F] == "Camera"
    # Pixels are in the profile's colour space: converted by it, they are those of the sRGB image.
    shown = from_linear(decode_srgb(np.asarray(found, float) / 255), P3)
    difference = np.abs(shown - np.asarray(srgb, float))
    assert difference.mean() < 0.5
    assert difference.max() < 9  # one level near black is several in the other space
    assert np.abs(np.asarray(found, float) - srgb).mean() > 3


def test_webp_and_tiff_hold_them_and_others_are_refused(glc: Glc, photo: Path) -> None:
    glc("compress", photo, "--keep-metadata")
    for name in ("a.webp", "a.tif"):
        assert glc("decompress", "photo.glc", "-o", name, "--keep-metadata").exit_code == 0
        found = Image.open(name)
        assert found.info["icc_profile"] == PROFILE
        assert found.getexif()[0x010F] == "Camera"
        assert b"Quay" in found.info["xmp"]
        assert found.size == (32, 48)
    result = glc("decompress", "photo.glc", "-o", "a.bmp", "--keep-metadata")
    assert result.exit_code == 2
    assert "--keep-metadata: BMP cannot hold it; decode a file to PNG, WebP or TIFF" in result.stderr
    assert not Path("a.bmp").exists()


def test_targets_include_it(glc: Glc, photo: Path) -> None:
    glc("compress", photo, "--keep-metadata")
    beside = Path("photo.glc.meta").stat().st_size
    lowest = glc("compress", photo, "-o", "low.glc", "--quality", 0)
    target = beside + size_told(lowest.stdout) + 4
    result = glc("compress", photo, "-o", "b.glc", "--keep-metadata", "--target-size", target)
    assert result.exit_code == 0
    assert size_told(result.stdout) == Path("b.glc").stat().st_size + beside <= target
    result = glc("compress", photo, "-o", "c.glc", "--keep-metadata", "--target-size", beside)
    assert result.exit_code == 2
    assert result.stderr == f"photo.jpg: the metadata alone have {beside:,} bytes; omit --keep-metadata\n"
    assert not list(Path().glob("c.glc*"))


def test_what_cannot_be_kept_is_said(glc: Glc, photo: Path) -> None:
    data = photo.read_bytes()
    for words in (("-o", "-"), ("--shards", "-o", "out")):
        result = glc("compress", photo, "--keep-metadata", *words)
        assert result.exit_code == 2
        assert "--keep-metadata: " in result.stderr
    assert "--keep-metadata: " in glc("compress", "-", "--keep-metadata", stdin=data).stderr
    # No metadata, no file.
    glc("compress", image("bare.png"), "--keep-metadata")
    assert not Path("bare.glc.meta").exists()
    result = glc("decompress", "bare.glc", "-o", "again.png", "--keep-metadata")
    assert (result.exit_code, result.stderr) == (0, "bare.glc: note: no metadata was kept for it\n")
    # The file of another image.
    glc("compress", photo, "--keep-metadata")
    glc("compress", photo, "--quality", 90, "--force")
    result = glc("decompress", "photo.glc", "-o", "again2.png", "--keep-metadata")
    assert result.exit_code == 2
    assert "photo.glc.meta: is not the metadata of this file" in result.stderr
    # A profile that an RGB image cannot have.
    grey = Image.fromarray(CHART[..., 0])
    grey.save("grey.png", icc_profile=grey_profile(1.8))
    glc("compress", "grey.png", "--keep-metadata")
    result = glc("decompress", "grey.glc", "-o", "grey2.png", "--keep-metadata")
    assert "its ICC profile is not for RGB output and stays in the metadata file" in result.stderr
    assert "icc_profile" not in Image.open("grey2.png").info


def test_adobe_rgb_by_exif_is_not_said_of_srgb_pixels(glc: Glc) -> None:
    Path("a.jpg").write_bytes(jpeg(CHART, exif=exif(1, "R03")))
    glc("compress", "a.jpg", "--keep-metadata")
    glc("decompress", "a.glc", "-o", "a.tif", "--keep-metadata")
    block = Image.open("a.tif").getexif()
    assert block.get_ifd(0xA005).get(1, "R98").strip("\0") == "R98"


def test_an_error_leaves_neither_file(glc: Glc, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "photo.glc")

    monkeypatch.setattr(sys.modules["glc.cli.compress"], "write_result", full)
    result = glc("compress", photo, "--keep-metadata")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["photo.jpg"]


def test_a_tiff_gives_what_describes_it(glc: Glc) -> None:
    block = Image.Exif()
    block[0x010F], block[0x8298] = "Camera", "Someone"
    block[0x8769] = {0x829A: 0.5}
    stream = io.BytesIO()
    Image.fromarray(CHART).save(stream, "TIFF", exif=block.tobytes())
    Path("a.tif").write_bytes(stream.getvalue())
    glc("compress", "a.tif", "--keep-metadata")
    glc("decompress", "a.glc", "--keep-metadata")
    found = Image.open("a.png").getexif()
    assert (found[0x010F], found[0x8298]) == ("Camera", "Someone")
    assert found.get_ifd(0x8769)[0x829A] == 0.5
    assert not {256, 257, 258, 273, 279} & set(found)


def test_the_result_and_its_metadata_are_written_together(
    glc: Glc, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glc("compress", photo, "--keep-metadata")
    before = Path("photo.glc.meta").read_bytes()
    Path("photo.glc").unlink()
    result = glc("compress", photo, "--keep-metadata")
    assert (result.exit_code, result.stderr) == (
        2,
        "photo.jpg: photo.glc.meta: exists; replace it with --force\n",
    )
    assert not Path("photo.glc").exists()

    def fail(job: object, data: bytes, force: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "photo.glc")

    monkeypatch.setattr("glc.cli.compress.write_result", fail)
    result = glc("compress", photo, "--keep-metadata", "--force", "--quality", 90)
    assert (result.exit_code, "No space left" in result.stderr) == (2, True)
    assert Path("photo.glc.meta").read_bytes() == before
    assert sorted(os.listdir()) == ["photo.glc.meta", "photo.jpg"]

"""`glc info`."""

import json
from pathlib import Path

import pytest
from PIL import Image

import glc as library
from tests.cli.conftest import Glc, image


def test_info_shows_the_header(glc: Glc, models: Path) -> None:
    glc("compress", image("a.png", 30, 40), "--quality", 25, "--model", "other")
    data = Path("a.glc").read_bytes()
    expected = {
        "file": "a.glc",
        "version": 1,
        "width": 40,
        "height": 30,
        "rate_index": 0.75,
        "bytes": len(data),
        "bpp": 8 * len(data) / 1200,
        "fingerprint": library.load(models / "other.safetensors", "cpu").fingerprint.hex(),
        "model": "other",
    }
    assert json.loads(glc("info", "a.glc", "--json").stdout) == expected
    assert json.loads(glc("info", "-", "--json", stdin=data).stdout) == expected | {"file": "standard input"}
    text = glc("info", "a.glc").stdout
    for part in ("40 x 30", "0.750 of 0 to 3", f"{len(data):,} bytes", str(expected["fingerprint"]), "other"):
        assert part in text


def test_info_needs_no_weights_and_reports_unreadable_files(
    glc: Glc, monkeypatch: pytest.MonkeyPatch
) -> None:
    glc("compress", image("a.png"))
    monkeypatch.setenv("GLC_MODELS", "nowhere")
    result = glc("info", "a.glc", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["model"] is None
    assert "unknown" in glc("info", "a.glc").stdout
    result = glc("info", "missing.glc")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "missing.glc: No such file or directory\n"


def test_several_files_and_folders_make_a_table(glc: Glc) -> None:
    size = len(glc("compress", image("set/a.png", 30, 40)).stdout) and Path("set/a.glc").stat().st_size
    Image.new("RGBA", (6, 4), (9, 9, 9, 0)).save("set/clear.png")
    Path("set/b.heif.txt").write_text("no image")
    Path("set/raw.dng").write_bytes(b"")
    Path("bad.png").write_bytes(b"no image")
    Path("empty").mkdir()
    result = glc("info", "set", "bad.png", "empty", "--background", "#000")
    assert result.exit_code == 1
    head, *rows = [line.split("  ") for line in result.stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (head, *rows)]
    assert cells[0] == ["file", "content", "image", "bytes", "bpp", "model or colour"]
    assert cells[1] == ["set/a.glc", "glc 1", "40 x 30", str(size), f"{8 * size / 1200:.4f}", "small"]
    assert cells[2][:3] == ["set/a.png", "PNG", "40 x 30"]
    assert cells[2][-1] == "none, taken as sRGB"
    assert cells[3][-1] == "transparent, composited on #000"
    assert len({line.index("set/") for line in result.stdout.splitlines()[1:]}) == 1
    assert result.stderr.splitlines() == [
        "set: note: images left out: 1 (e.g. raw.dng): convert raw files to TIFF with dcraw_emu",
        "bad.png: not an image in a known format",
        "empty: folder contains no .glc files or images",
    ]
    found = json.loads(glc("info", "set/a.glc", "set/clear.png", "--json").stdout)
    assert [one["file"] for one in found] == ["set/a.glc", "set/clear.png"]
    assert found[1]["treatment"] == ["transparent, composited on white"]


def test_an_image_on_standard_input(glc: Glc) -> None:
    data = image("a.png", 30, 40).read_bytes()
    found = json.loads(glc("info", "-", "--json", stdin=data).stdout)
    assert (found["file"], found["format"], found["width"], found["treatment"]) == (
        *("standard input", "PNG", 40),
        [],
    )
    assert "treatment   none" in glc("info", "-", stdin=data).stdout
    both = glc("info", "-", "a.png", stdin=data).stdout.splitlines()
    assert [line.split("  ")[0] for line in both[1:]] == ["standard input", "a.png"]

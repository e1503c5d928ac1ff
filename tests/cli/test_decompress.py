"""`glc decompress`: output files and the choice of the model."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import glc as library
from glc.cli.compress import LOSSLESS
from glc.cli.files import read_glc, read_image
from glc.codec import bitstream
from glc.codec.weights.file import read_weights
from glc.codec.weights.trust import Trust
from tests.cli.conftest import Glc, image, tree


def test_the_image_equals_that_of_the_library(glc: Glc, models: Path) -> None:
    image("photo.jpg", 45, 70)
    glc("compress", "photo.jpg")
    result = glc("decompress", "photo.glc")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "photo.glc -> photo.png: 70 x 45\n"
    expected = library.load(models / "small.safetensors", "cpu").decompress(Path("photo.glc").read_bytes())
    found = Image.open("photo.png")
    assert (found.format, found.mode) == ("PNG", "RGB")
    assert np.array_equal(found, expected)


def test_all_output_formats_are_lossless(glc: Glc) -> None:
    image("photo.png")
    glc("compress", "photo.png")
    glc("decompress", "photo.glc", "-o", "expected.png")
    for suffix, (name, _) in LOSSLESS.items():
        assert glc("decompress", "photo.glc", "-o", f"out/photo{suffix.upper()}").exit_code == 0
        found = Image.open(f"out/photo{suffix.upper()}")
        assert found.format == name
        assert np.array_equal(found, Image.open("expected.png")), suffix
    assert glc("decompress", "photo.glc", "-o", "out/plain").exit_code == 0
    assert Image.open("out/plain").format == "PNG"


def test_round_trip_of_folders_and_image_modes(glc: Glc) -> None:
    sizes = {"1": (1, 1), "LA": (70, 1), "P": (3, 65), "RGBA": (64, 64), "I;16": (33, 17), "CMYK": (8, 9)}
    Path("in/sub").mkdir(parents=True)
    for mode, size in sizes.items():
        Image.new(mode, size).save(f"in/sub/{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}")
    assert glc("compress", "in", "-o", "small").exit_code == 0
    Path("small/readme.txt").write_text("not for decoding")
    result = glc("decompress", "small", "-o", "large")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == len(sizes)
    found = {path.stem: Image.open(path).size for path in Path("large/sub").iterdir()}
    assert found == {mode.replace(";", ""): size for mode, size in sizes.items()}


def test_each_file_is_decoded_with_the_known_model_that_made_it(
    glc: Glc, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def count(path: Path, mapped: bool = False, trust: Trust = ()) -> object:
        loads.append(path.stem)
        return read_weights(path, mapped, trust)

    for name, model in (("a", "small"), ("b", "other"), ("c", "small"), ("d", "other")):
        assert glc("compress", image(f"{name}.png"), "-o", f"in/{name}.glc", "--model", model).exit_code == 0
    monkeypatch.setattr("glc.codec.codec.read_weights", count)
    result = glc("decompress", "in", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert tree("out") == ["a.png", "b.png", "c.png", "d.png"]
    assert sorted(loads) == ["other", "small"]


def test_the_error_for_wrong_weights_names_the_right_model(
    glc: Glc, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glc("compress", image("a.png"), "--model", "other")
    made_by = library.load(models / "other.safetensors", "cpu").fingerprint.hex()
    result = glc("decompress", "a.glc", "-o", "b.png", "--model", "small")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"a.glc: made with weights {made_by}, but --model small has ")
    assert "; decode it with --model other" in result.stderr
    # The same without the right model among the known ones.
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "small.safetensors").symlink_to(models / "small.safetensors")
    monkeypatch.setenv("GLC_MODELS", str(tmp_path / "few"))
    for arguments in ((), ("--model", "small")):
        result = glc("decompress", "a.glc", "-o", "b.png", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"a.glc: made with weights {made_by}, ")
        assert "; give the weights file with --model" in result.stderr
        assert result.stderr.count("\n") == 1
    assert glc("decompress", "a.glc", "-o", "b.png", "--model", models / "other.safetensors").exit_code == 0


def test_truncated_and_corrupt_files_are_refused(glc: Glc) -> None:
    glc("compress", image("a.png"))
    complete = Path("a.glc").read_bytes()
    for data, message in (
        (b"", "the file is empty"),
        (b"\x89PNG" + bytes(100), "not a .glc file"),
        (complete[:10], "truncated file: 10 bytes"),
        (complete[:-1], "corrupt or truncated file: "),
        (complete[:3] + b"\x02" + complete[4:], "the file has format version 2"),
    ):
        Path("bad.glc").write_bytes(data)
        for command in ("decompress", "info"):
            result = glc(command, "bad.glc")
            assert result.exit_code == 2
            assert result.stderr.startswith(f"bad.glc: {message}")
            assert result.stderr.count("\n") == 1
            assert result.stdout == ""
    assert tree(".") == ["a.glc", "a.png", "bad.glc"]


def test_max_pixels_limits_the_size_and_a_corrupt_size_is_corruption(glc: Glc) -> None:
    glc("compress", image("a.png", 40, 50))
    result = glc("decompress", "a.glc", "-o", "b.png", "--max-pixels", 1999)
    assert result.exit_code == 2
    assert result.stderr == "a.glc: the image has 50 x 40 pixels, above the limit of 1999\n"
    assert glc("decompress", "a.glc", "-o", "b.png", "--max-pixels", 2000).exit_code == 0
    damaged = bytearray(Path("a.glc").read_bytes())
    damaged[8:12] = b"\xff\xff\xff\xff"
    Path("a.glc").write_bytes(damaged)
    for more in ((), ("--max-pixels", 100)):
        result = glc("decompress", "a.glc", "-o", "c.png", *more)
        assert result.exit_code == 2
        assert result.stderr.startswith("a.glc: corrupt or truncated file: ")
    # Longer than any file that is accepted: the end is not waited for.
    result = glc("decompress", "-", "--max-pixels", 100, stdin=bytes(damaged) + bytes(2 << 20))
    assert "65536 x 65536 pixels, above the limit of 100" in result.stderr


def test_reading_allocates_in_proportion_to_the_input(glc: Glc) -> None:
    header = bitstream.Header(fingerprint=bytes(4), width=16384, height=16384, rate_index=0)
    data = bitstream.pack(header, b"\1" * (3 << 20))
    Path("a.glc").write_bytes(data)
    with open("a.glc", "rb") as file:
        for read in (lambda: read_glc(Path("a.glc")), lambda: read_image(file)):
            tracemalloc.start()
            assert read() == data
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4 * len(data)


def test_uncertainty_writes_a_map_beside_the_image(glc: Glc, models: Path) -> None:
    image("photo.png", 60, 90)
    glc("compress", "photo.png")
    result = glc("decompress", "photo.glc", "-o", "out.png", "--uncertainty", "map.png")
    assert result.exit_code == 0, result.stderr
    expected = library.load(models / "small.safetensors", "cpu").uncertainty(Path("photo.glc").read_bytes())
    assert np.array_equal(Image.open("out.png"), expected.image)
    found = Image.open("map.png")
    assert (found.mode, found.size) == ("L", (90, 60))
    assert np.array_equal(found, expected.map)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("photo.glc", "other.glc", "-o", "out", "--uncertainty", "map.png"),
            "writes one map; give one file",
        ),
        (("photo.glc", "-o", "out.png", "--uncertainty", "map.jpg"), "map.jpg: the map is written as PNG"),
        (
            ("photo.glc", "-o", "out.png", "--uncertainty", "out.png"),
            "out.png: the name of the decoded image",
        ),
        (("photo.glc", "-o", "out.png", "--uncertainty", "photo.png"), "photo.png: exists; replace it with"),
        (("photo.glc", "--shards", "-o", "out", "--uncertainty", "map.png"), "not with --shards"),
    ],
)
def test_a_map_that_cannot_be_written_is_refused(glc: Glc, arguments: tuple[str, ...], message: str) -> None:
    image("photo.png")
    glc("compress", "photo.png")
    Path("other.glc").write_bytes(Path("photo.glc").read_bytes())
    before = tree(".")
    result = glc("decompress", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert tree(".") == before


def test_no_map_without_its_image(glc: Glc) -> None:
    image("photo.png")
    glc("compress", "photo.png")
    Path("photo.glc").write_bytes(Path("photo.glc").read_bytes()[:-3])
    result = glc("decompress", "photo.glc", "-o", "out.png", "--uncertainty", "map.png")
    assert result.exit_code == 2
    assert not Path("map.png").exists()

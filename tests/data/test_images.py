import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from glc.data.images import from_uint8, list_images, read_rgb, stack_images, to_image, to_tensor, to_uint8
from glc.errors import ImageError


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_rgb_is_read_unchanged_from_every_kind_of_source(tmp_path, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    data = path.read_bytes()
    for source in (path, str(path), data, io.BytesIO(data), photo):
        np.testing.assert_array_equal(pixels(read_rgb(source)), np.asarray(photo))


def test_image_in_memory_is_not_changed_or_shared(photo):
    before = np.array(photo)
    read_rgb(photo).paste((0, 0, 0), (0, 0, 5, 5))
    np.testing.assert_array_equal(np.asarray(photo), before)


def test_grey_and_one_bit():
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(read_rgb(encoded(grey))), expected)
    bits = Image.fromarray(np.eye(8, dtype=bool))
    assert pixels(read_rgb(encoded(bits)))[..., 0].tolist() == (255 * np.eye(8, dtype=int)).tolist()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65278, 65535]], dtype=np.uint16)
    out = pixels(read_rgb(encoded(Image.fromarray(values), format)))
    assert out[..., 1].tolist() == [[0, 0, 1, 1], [128, 156, 254, 255]]


def test_wide_modes():
    assert pixels(read_rgb(Image.fromarray(np.array([[0, 65535]], np.int32))))[0, :, 0].tolist() == [0, 255]
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert pixels(read_rgb(encoded(unit, "TIFF")))[0, :, 2].tolist() == [0, 128, 255]
    big_endian = Image.frombytes("I;16B", (2, 1), b"\x00\x00\xff\xff")
    assert pixels(read_rgb(big_endian))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 70000]], np.int32),
        np.array([[-1, 3]], np.int32),
        np.array([[0, 1.5]], np.float32),
        np.array([[0, np.nan]], np.float32),
    ],
)
def test_values_without_a_defined_range_are_refused(values):
    with pytest.raises(ImageError, match="outside"):
        read_rgb(Image.fromarray(values))


def test_alpha_is_composited_on_white():
    rgba = Image.fromarray(np.array([[[0, 100, 200, 0], [0, 100, 200, 255], [0, 0, 0, 128]]], np.uint8))
    assert pixels(read_rgb(encoded(rgba)))[0].tolist() == [[255, 255, 255], [0, 100, 200], [127, 127, 127]]
    la = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), "LA")
    assert pixels(read_rgb(encoded(la)))[0].tolist() == [[255] * 3, [10] * 3]


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    assert pixels(read_rgb(encoded(palette)))[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert pixels(read_rgb(encoded(palette, transparency=1)))[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_cmyk_jpeg_is_near_its_rgb(photo):
    smooth = photo.resize((64, 64), Image.Resampling.BICUBIC)
    out = pixels(read_rgb(encoded(smooth.convert("CMYK"), "JPEG", quality=98))).astype(int)
    assert np.abs(out - np.asarray(smooth).astype(int)).mean() < 6


def test_animation_gives_the_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(read_rgb(data))[0, 0].tolist() == [255, 0, 0]
    moved = Image.open(io.BytesIO(data))
    moved.seek(2)
    assert pixels(read_rgb(moved))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, photo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = np.asarray(photo)
    upright = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(plain),
    }[orientation]
    np.testing.assert_array_equal(pixels(read_rgb(encoded(photo, exif=exif))), upright)


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_bad_files_name_the_file(tmp_path, photo):
    jpeg = encoded(photo.resize((300, 300)), "JPEG")
    png = encoded(photo)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    bad = {
        "empty.jpg": b"",
        "text.png": b"this is not an image",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "bomb.png": bomb,
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name):
            read_rgb(tmp_path / name)
        with pytest.raises(ImageError, match=r"shard\.tar/key"):
            read_rgb(data, name="shard.tar/key")
    with pytest.raises(ImageError, match=r"absent\.png: no such file"):
        read_rgb(tmp_path / "absent.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_image(photo):
    broken = encoded(photo, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    np.testing.assert_array_equal(pixels(read_rgb(broken)), np.asarray(photo))


def test_every_level_survives_the_round_trip(photo):
    levels = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(levels)
    assert x.dtype == torch.float32
    assert (x[0].item(), x[255].item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), levels)
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    for image in (photo, Image.fromarray(ramp)):
        expected = from_uint8(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        assert torch.equal(to_tensor(image), expected)
        assert torch.equal(stack_images([image] * 2), torch.stack([expected] * 2))
        assert to_image(expected).tobytes() == image.tobytes()


def test_stacking_refuses_other_modes_and_sizes(photo):
    with pytest.raises(ValueError, match="mode L"):
        to_tensor(photo.convert("L"))
    with pytest.raises(ValueError, match="differ in size"):
        stack_images([photo, photo.resize((5, 5))])


def test_to_image_clamps_and_refuses():
    assert to_image(torch.full((3, 2, 2), 1.7)).getpixel((0, 0)) == (255, 255, 255)
    assert to_image(torch.full((3, 2, 2), -9.0)).getpixel((1, 1)) == (0, 0, 0)
    with pytest.raises(ValueError, match="NaN"):
        to_image(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\[1, 3, 2, 2\]"):
        to_image(torch.zeros(1, 3, 2, 2))


def test_list_images_is_recursive_sorted_and_skips_hidden(tmp_path):
    for name in ["b/2.JPG", "b/1.png", "a.webp", ".hidden.png", ".cache/x.png", "notes.txt", "c.jpeg.bak"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.webp", "b/1.png", "b/2.JPG"]
    with pytest.raises(NotADirectoryError, match="nowhere"):
        list_images(tmp_path / "nowhere")

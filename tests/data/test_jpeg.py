"""Crops of JPEGs decoded in part: the pixels of the complete image, and the files left to Pillow."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from glc.data import jpeg
from glc.data.images import read_rgb
from glc.data.jpeg import Jpeg, open_jpeg
from glc.data.shards import ListSource, Record
from glc.data.stream import TrainStream, random_crop
from glc.errors import ImageError

SAMPLINGS = ["4:4:4", "4:2:2", "4:2:0"]


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "decode_jpeg", None)
    elif importlib.util.find_spec("simplejpeg") is None:
        pytest.skip("needs simplejpeg")


def encoded(mode: str = "RGB", **options: object) -> bytes:
    """A JPEG of 75 x 141 pixels, of noise on a gradient: neighbouring rows of chroma differ."""
    noise = np.random.default_rng(0).integers(0, 90, (141, 75, 3))
    levels = (noise + np.arange(141)[:, None, None]).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(stream, "JPEG", **{"quality": 92, **options})
    return stream.getvalue()


def opened(data: bytes) -> Jpeg:
    found = open_jpeg(data, "a.jpg")
    assert found is not None
    return found


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"optimize": True}], ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_crops_have_the_pixels_of_the_complete_image(sampling: str, options: dict[str, int]) -> None:
    data = encoded(subsampling=sampling, **options)
    image, part = read_rgb(data), opened(data)
    assert part.size == image.size
    for bottom in range(1, 142):  # each row is the last one once
        box = (bottom % 40, max(0, bottom - 20), 75 - bottom % 30, bottom)
        assert part.crop(box).tobytes() == image.crop(box).tobytes()


@pytest.mark.usefixtures("decoder")
def test_random_crops_are_those_of_the_complete_image() -> None:
    data = encoded()
    image, part = read_rgb(data), opened(data)
    for seed in range(60):
        side, scales = (32, (1.0, 1.0)) if seed % 2 else (40, (0.3, 1.5))
        cuts = [random_crop(x, side, np.random.default_rng(seed), *scales) for x in (image, part)]
        assert cuts[0].tobytes() == cuts[1].tobytes()


def test_only_the_rows_of_a_crop_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []

    def decode(data: bytes, **options: object) -> np.ndarray:
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        heights.append(len(pixels))
        return pixels

    monkeypatch.setattr(jpeg, "decode_jpeg", decode)
    opened(encoded()).crop((0, 10, 20, 30))
    assert 30 < heights[0] < 48


@pytest.mark.usefixtures("decoder")
def test_what_cannot_be_decoded_in_part_is_read_by_pillow() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded()
    others = {
        "progressive": encoded(progressive=True),
        "grey": encoded("L"),
        "four colours": encoded("CMYK"),
        "turned": encoded(exif=exif),
        "another profile": encoded(icc_profile=profile),
        "truncated": good[:-100],
        "text after the end": good + b"text",
        "no JPEG": b"\x89PNG",
        "no frame": b"\xff\xd8\xff\xd9",
    }
    assert [name for name, data in others.items() if open_jpeg(data, name) is not None] == []


def undecodable() -> bytes:
    """A JPEG without quantisation tables: its header is good, and it has no pixels."""
    data = encoded()
    return data[: data.index(b"\xff\xdb")] + data[data.index(b"\xff\xc0") :]


@pytest.mark.usefixtures("decoder")
def test_undecodable_pixels_are_named() -> None:
    with pytest.raises(ImageError, match=r"a\.jpg: corrupt or truncated"):
        opened(undecodable()).crop((0, 0, 8, 8))


def test_an_undecodable_crop_is_replaced_by_the_next_one() -> None:
    files = [encoded(), undecodable(), encoded(quality=60)]
    batches = [
        next(iter(TrainStream(ListSource(records), crop=32, batch_size=3, epoch_batches=1)))
        for records in (
            [Record(str(i), data) for i, data in enumerate(files)],
            [Record(str(i), data) for i, data in enumerate((files[0], files[2], files[2]))],
        )
    ]
    order = [int(key) for key in batches[1].key]
    bad = order.index(1)
    following = order[(bad + 1) % 3]
    if bad < 2:  # the next record of this slot is that of the next one
        assert int(batches[0].key[bad]) == following
    for slot, number in enumerate(order):
        if number != 1:
            assert batches[0].key[slot] == str(number)
            assert batches[0].x[slot].equal(batches[1].x[slot])

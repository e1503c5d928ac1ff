import numpy as np
import pytest
from PIL import Image

from glc.data.pack import pack


def numbered(index, width=40, height=36):
    """An image that tells its number: red is 4 x index; green and blue give each pixel's place."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([np.full_like(x, index * 4), x, y], axis=-1).astype(np.uint8))


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of 12 numbered images, 40 x 36."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        numbered(i).save(folder / f"n{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def shards(images, tmp_path_factory):
    """The same images in three shards of four, in order."""
    dest = tmp_path_factory.mktemp("packed") / "train"
    pack([images], dest, images_per_shard=4, workers=1, mix=False, progress=False)
    return dest

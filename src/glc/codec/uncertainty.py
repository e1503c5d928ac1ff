"""How much of a decoded image its file determines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from glc.data.images.masks import to_grey

DRAWS = 4
"""Points of the quantisation cells besides their centres."""
GREY_PER_LEVEL = 4
"""Grey levels of `Uncertainty.map` per level of deviation."""

NO_CELLS = "an indices-map codec has no quantisation cells; decode the image without its uncertainty"


@dataclass(frozen=True)
class Uncertainty:
    """A decoded image, and how far D's images of other latents deviate that have the same symbols."""

    image: Image.Image
    """As of `Codec.decompress`."""
    deviation: np.ndarray
    """Root mean square over draws and channels, in levels of 0 to 255, float32 `[H, W]`."""

    @property
    def map(self) -> Image.Image:
        """The deviation as a grey image: black is determined by the file; white is 64 levels or more."""
        return to_grey(GREY_PER_LEVEL * self.deviation)


def deviation(image: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Return the root mean square deviation of images `[H, W, 3]` from one of them, float32 `[H, W]`."""
    squares = np.zeros(image.shape[:2], np.float32)
    for other in others:
        squares += np.square(other.astype(np.float32) - image).mean(2)
    return np.sqrt(squares / np.float32(len(others)))


def cell_offsets(shape: tuple[int, ...], draw: int) -> np.ndarray:
    """Return offsets within quantisation cells, float64 in [-1/2, 1/2); the same everywhere for a draw."""
    # Philox counts: its stream is fixed, and so is the conversion of its words to floats.
    words = np.random.Philox(key=draw).random_raw(int(np.prod(shape)))
    offsets: np.ndarray = (words >> np.uint64(11)) * 2.0**-53 - 0.5
    return offsets.reshape(shape)

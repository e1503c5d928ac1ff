"""Every oddity is read as the pixels that it must have, and what was done is said."""

import io

import numpy as np
import pytest

from glc.data.images import Treatment, inspect, open_image, read_rgb
from glc.errors import ImageError
from tests.oddities import oddities

NAMES = list(oddities())


@pytest.mark.parametrize("name", NAMES)
def test_pixels_and_treatment(name: str) -> None:
    oddity = oddities()[name]
    said: list[Treatment] = []
    if oddity.expected is None:
        with pytest.raises(ImageError, match=f"^{name}: .*{oddity.treatment}"):
            read_rgb(oddity.data, name)
        return
    image = read_rgb(oddity.data, name, report=lambda name, treatment: said.append(treatment))
    assert image.mode == "RGB"
    assert image.info == {}
    assert image.size == oddity.expected.shape[1::-1]
    difference = np.abs(np.asarray(image, float) - np.clip(oddity.expected, 0, 255))
    assert difference.max() <= oddity.tolerance
    matching = [treatment for treatment in said if oddity.treatment in treatment.text]
    assert matching or not oddity.treatment
    assert any(treatment.named != "never" for treatment in said) == oddity.named
    about = inspect(open_image(io.BytesIO(oddity.data)), name)
    assert (about.width, about.height) == image.size
    assert list(about.treatments) == said

"""Photographs that come inside installed packages: data for the demo and for tests, with nothing to download.

Only the files are looked up; the packages themselves are not imported. The split is fixed and the two sides
share no scene (the left and the right motorcycle are one scene).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "test"]

# (module, distribution to install, file inside the module's folder)
_SKIMAGE = ("skimage", "scikit-image", "data/{}")
_SKLEARN = ("sklearn", "scikit-learn", "datasets/images/{}")
_MATPLOTLIB = ("matplotlib", "matplotlib", "mpl-data/sample_data/{}")

_SAMPLES: dict[str, list[tuple[tuple[str, str, str], str]]] = {
    "train": [
        (_SKIMAGE, "astronaut.png"),
        (_SKIMAGE, "coffee.png"),
        (_SKIMAGE, "motorcycle_left.png"),
        (_SKIMAGE, "motorcycle_right.png"),
        (_SKIMAGE, "rocket.jpg"),
        (_SKLEARN, "china.jpg"),
    ],
    "test": [
        (_SKIMAGE, "chelsea.png"),
        (_SKLEARN, "flower.jpg"),
        (_MATPLOTLIB, "grace_hopper.jpg"),
    ],
}


def sample_paths(split: Split) -> list[Path]:
    """Paths of the photographs of one side of the split, always in the same order.

    Raises:
        ValueError: unknown split.
        FileNotFoundError: a package that holds some of them is missing; the message says what to install.
    """
    if split not in _SAMPLES:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    return [_locate(*package, name) for package, name in _SAMPLES[split]]


def _locate(module: str, distribution: str, folder: str, name: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the sample photograph {name} comes inside {distribution}, which is not installed: "
            f"pip install {distribution}"
        )
    path = Path(spec.origin).parent / folder.format(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this version of {distribution} lacks it; install another")
    return path

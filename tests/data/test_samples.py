import importlib.util

import pytest

from glc.data.images import read_rgb
from glc.data.sources import sample_paths


def test_split_is_fixed_and_disjoint():
    train, test = sample_paths("train"), sample_paths("test")
    assert not {path.name for path in train} & {path.name for path in test}
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= {path.name for path in train}
    assert len(train) + len(test) == 9
    for path in train + test:
        picture = read_rgb(path)
        assert min(picture.size) >= 256, path.name


def test_missing_package_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else real(name, *rest)
    )
    with pytest.raises(FileNotFoundError, match="pip install scikit-learn"):
        sample_paths("train")


def test_unknown_split():
    with pytest.raises(ValueError, match="train, test"):
        sample_paths("validation")

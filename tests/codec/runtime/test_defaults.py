"""The codec does not depend on the defaults that the calling program has given PyTorch."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

import glc
from glc.codec.runtime.defaults import standard_defaults
from tests.codec.fixed_model import fixed_codec_weights, fixed_image


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype  # as the caller set it
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
        assert torch.get_default_device().type == name
    finally:
        torch.set_default_device(None)


SETTINGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixed_codec_weights(tmp_path_factory.mktemp("defaults") / "m.safetensors")


@pytest.mark.parametrize("setting", SETTINGS)
def test_files_and_images_are_the_same_under_other_defaults(setting: str, weights: Path) -> None:
    image = fixed_image(40, 33)
    before = glc.load(weights, "cpu")
    data = before.compress(image, 50)
    pixels = before.decompress(data).tobytes()
    with SETTINGS[setting]():
        for codec in (before, glc.load(weights, "cpu")):
            assert codec.compress(image, 50) == codec.compress_batch([image], 50)[0] == data
            assert codec.decompress(data).tobytes() == pixels
            assert codec.from_symbols(codec.symbols(data), (40, 33), codec.rate_index(50)) == data
            assert codec.decode_z(data).size == (33, 40)


def test_callers_default_returns_when_the_last_of_several_threads_is_done(weights: Path) -> None:
    codec = glc.load(weights, "cpu")
    image = fixed_image(33, 40)
    data = codec.compress(image, 50)
    with default_dtype(torch.float64), ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: codec.compress(image, 50), range(16))) == {data}
    with default_dtype(torch.float64):
        with standard_defaults():
            with standard_defaults():
                pass
            assert torch.get_default_dtype() == torch.float32
        assert torch.ones(1).dtype == torch.float64

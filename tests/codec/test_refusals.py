"""Valid files that a codec must refuse: of other weights, missing rate points, oversized images."""

import dataclasses
import tracemalloc
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import glc
from glc.codec import bitstream
from glc.codec.bitstream import RATE_ONE
from glc.models.coder import TransformCoder
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import VARIANTS, Variants


def test_files_of_other_weights_are_refused(variants: Variants) -> None:
    here = variants.codec("categorical")
    others = [variants.codec(variant) for variant in VARIANTS if variant != "categorical"]
    for other in (*others, variants.codec("categorical", seed=1)):
        data = other.compress(fixed_image(32, 32), 50)
        message = f"{other.fingerprint.hex()}.*{here.fingerprint.hex()}"
        for read in (here.decompress, here.symbols, here.decode_z):
            with pytest.raises(glc.WrongWeightsError, match=message):
                read(data)


def test_missing_rate_points_are_refused(codec: glc.Codec) -> None:
    header, payload = bitstream.unpack(codec.compress(fixed_image(32, 32), 100))
    top = (codec.model.num_rates - 1) * RATE_ONE
    assert header.rate_index == top
    fractions = [] if isinstance(codec.model.coder, TransformCoder) else [1, RATE_ONE // 2]
    wrong = [top + 1, 0xFFFF, *fractions]
    for rate_index in wrong:
        data = bitstream.pack(dataclasses.replace(header, rate_index=rate_index), payload)
        with pytest.raises(glc.CorruptFileError, match="no rate index"):
            codec.decompress(data)


class Recorder(TorchDispatchMode):
    """Count what torch is asked to do."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_oversized_images_are_refused_before_allocation(codec: glc.Codec) -> None:
    header, payload = bitstream.unpack(codec.compress(fixed_image(40, 50), 0))
    for width, height, options in (
        (1 << 16, 1 << 16, {}),
        (16384, 16385, {}),
        (50, 40, {"max_pixels": 1999}),
    ):
        data = bitstream.pack(dataclasses.replace(header, width=width, height=height), payload)
        for read in (codec.decompress, codec.symbols, codec.decode_z):
            with Recorder() as recorder:
                tracemalloc.start()
                with pytest.raises(glc.SizeLimitError, match=f"{width} x {height}"):
                    read(data, **options)
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert recorder.operations == 0
            assert peak < 100_000
    with Recorder() as recorder:
        data = bitstream.pack(header, payload)
        assert codec.decompress(data, max_pixels=2000).size == (50, 40)
    assert recorder.operations > 0

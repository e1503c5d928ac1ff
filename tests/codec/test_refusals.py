"""Valid files that a codec must refuse: of other weights, missing rate points, oversized images."""

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import glc
from glc.codec import bitstream
from glc.codec.bitstream import RATE_ONE
from glc.models.coder import TransformCoder
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.codec.variants import VARIANTS, Variants


def test_files_of_other_weights_are_refused(variants: Variants, tmp_path: Path) -> None:
    here = variants.codec("categorical")
    others = [*(variants.codec(v) for v in VARIANTS if v != "categorical")]
    others.append(glc.load(fixed_codec_weights(tmp_path / "seed.safetensors", seed=1), "cpu"))
    for other in others:
        data = other.compress(fixed_image(32, 32), 50)
        for read in (here.decompress, here.symbols, here.decode_z):
            with pytest.raises(
                glc.WrongWeightsError, match=f"{other.fingerprint.hex()}.*{here.fingerprint.hex()}"
            ):
                read(data)


def test_missing_rate_points_are_refused(codec: glc.Codec) -> None:
    header, payload = bitstream.unpack(codec.compress(fixed_image(32, 32), 100))
    top = (codec.model.num_rates - 1) * RATE_ONE
    assert header.rate_index == top
    wrong = (
        [top + 1, 0xFFFF] if isinstance(codec.model.coder, TransformCoder) else [top + 1, 1, RATE_ONE // 2]
    )
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
    for width, height, limit in ((1 << 16, 1 << 16, None), (16384, 16385, None), (50, 40, 1999)):
        data = bitstream.pack(dataclasses.replace(header, width=width, height=height), payload)
        options = {} if limit is None else {"max_pixels": limit}
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

"""Full images in batches, as on a GPU, run on the CPU and compared with row tiles."""

import numpy as np
import pytest
import torch

import glc
from glc.codec.runtime.networks import ImageNetworks
from glc.codec.runtime.resources import Precision
from glc.data.images import to_input
from glc.errors import MemoryLimitError
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import Variants

CPU = torch.device("cpu")


@pytest.fixture
def codec(variants: Variants) -> glc.Codec:
    return variants.codec("categorical")


@torch.inference_mode()
def test_full_batches_equal_row_tiles(codec: glc.Codec) -> None:
    networks = ImageNetworks(codec.model, CPU, Precision(torch.float32, torch.float32))
    levels = [to_input(fixed_image(67, 90, seed)) for seed in range(2)]
    floats = to_input(torch.rand(3, 70, 96))
    latent = networks._encode_full([*levels, floats])
    assert torch.allclose(latent, networks.encode([*levels, floats]), atol=1e-4)
    x_hat = networks._decode_full(latent)
    decoded = networks.decode(latent, [(67, 90)] * 3)
    for full, tiled in zip(x_hat, decoded, strict=True):
        pixels = (full[:, :67, :90].permute(1, 2, 0) + 1).mul(127.5).clamp(0, 255)
        assert np.abs(pixels.numpy() - tiled).max() < 0.51


@torch.inference_mode()
def test_pixel_convolutions_of_full_images_run_in_float32(codec: glc.Codec) -> None:
    networks = ImageNetworks(codec.model, CPU, Precision(torch.bfloat16, torch.bfloat16))
    # After the rearrangement: a convolution, then blocks.
    _, first, second, *_ = networks._full_encoder.blocks
    seen: list[torch.Tensor] = []
    for block in (first, second):
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    latent = networks._encode_full([to_input(fixed_image(64, 64))])
    assert (seen[0] != seen[0].bfloat16()).any()
    assert [x.dtype for x in seen] == [torch.float32, torch.bfloat16]
    x_hat = networks._decode_full(latent)
    assert x_hat.dtype == torch.float32
    assert (x_hat != x_hat.bfloat16()).any()


def test_gpu_out_of_memory_suggests_the_cpu(codec: glc.Codec) -> None:
    networks = ImageNetworks(codec.model, torch.device("cuda"), codec.networks.precision)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30.00 GiB.")

    latent = torch.zeros(1, 4, 4, 4)
    networks._encode_full = networks._decode_full = full  # type: ignore[method-assign, assignment]
    for call in (
        lambda: networks.encode([torch.zeros(1, 3, 64, 64)]),
        lambda: networks.decode(latent, [(8, 8)]),
    ):
        with pytest.raises(MemoryLimitError, match="--device cpu"):
            call()

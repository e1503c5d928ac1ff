"""Latent optimisation: lower distortion at nearly the same size, with and without tiles."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import glc
from glc.codec import bitstream
from glc.codec.rate_search import TOLERANCE
from glc.data.images import read_rgb
from glc.data.sources import sample_paths
from glc.errors import MemoryLimitError
from glc.latent_optimization import LatentOptimizer, _tiles
from glc.layers.blocks import PixelNorm
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import VARIANTS, Variants
from tests.losses.test_perceptual import FILES, reference, save_features

PIXELS = (64, 128)


class Coarse(nn.Module):
    """Stands for LPIPS, whose weights are not in the project: the distance of areas of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.widest = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.widest = max(self.widest, x.shape[-2] * x.shape[-1])
        return nn.functional.avg_pool2d(x - y, 4).abs().mean((1, 2, 3))


@pytest.fixture(scope="module")
def codec() -> glc.Codec:
    return glc.load(device="cpu", precision="float32")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    height, width = PIXELS
    return np.asarray(read_rgb(sample_paths("test")[0]))[100 : 100 + height, 100 : 100 + width].copy()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # Sums in another order are other gradients, and Adam makes much of small ones.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def distance(codec: glc.Codec, data: bytes, image: np.ndarray) -> float:
    """Return the distortion of the image in a file."""
    x, x_hat = (
        torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        for p in (image, codec.decompress(data))
    )
    return float((x - x_hat).abs().mean() + Coarse()(x, x_hat).mean())


def test_distortion_falls_at_nearly_the_same_size(codec: glc.Codec, photograph: np.ndarray) -> None:
    plain = codec.compress(photograph)
    searched = codec.compress(photograph, optimize_latent=LatentOptimizer(6, distance=Coarse()))
    assert distance(codec, searched, photograph) < 0.95 * distance(codec, plain, photograph)
    assert len(searched) < 1.06 * len(plain)
    assert bitstream.unpack(searched)[0] == bitstream.unpack(plain)[0]
    # More steps go further, and the file is the same each time, whatever was drawn before.
    further = codec.compress(photograph, optimize_latent=LatentOptimizer(16, distance=Coarse()))
    assert distance(codec, further, photograph) < distance(codec, searched, photograph)
    torch.rand(3)
    assert codec.compress(photograph, optimize_latent=LatentOptimizer(6, distance=Coarse())) == searched


def test_bfloat16_gains_as_much_as_float32(codec: glc.Codec, photograph: np.ndarray) -> None:
    plain = distance(codec, codec.compress(photograph), photograph)
    files = [
        codec.compress(photograph, optimize_latent=LatentOptimizer(6, distance=Coarse(), bfloat16=bfloat16))
        for bfloat16 in (False, True)
    ]
    exact, rounded = (plain - distance(codec, data, photograph) for data in files)
    assert files[0] != files[1]
    assert rounded > 0.9 * exact
    assert len(files[1]) < 1.03 * len(files[0])


def test_the_codec_computes_as_before_afterwards(codec: glc.Codec, photograph: np.ndarray) -> None:
    plain = codec.compress(photograph)
    image = codec.decompress(plain)
    weights = {name: tensor.clone() for name, tensor in codec.model.state_dict().items()}
    codec.compress(photograph, optimize_latent=LatentOptimizer(1, distance=Coarse()))
    norms = [layer for layer in codec.model.modules() if isinstance(layer, PixelNorm)]
    assert norms
    assert all(layer.kernel is None for layer in norms)  # the kernels round otherwise
    assert all(tensor.equal(weights[name]) for name, tensor in codec.model.state_dict().items())
    assert codec.compress(photograph) == plain
    assert codec.decompress(plain) == image


def test_rate_weight_limits_bits(codec: glc.Codec, photograph: np.ndarray) -> None:
    loose, tight = (
        codec.compress(photograph, 100, optimize_latent=optimize_latent)
        for optimize_latent in (
            LatentOptimizer(10, distance=Coarse(), rate_weight=weight, step_size=0.2)
            for weight in (0.0, 20.0)
        )
    )
    assert len(tight) <= 1.01 * len(codec.compress(photograph, 100)) < len(loose)
    assert distance(codec, loose, photograph) < distance(codec, tight, photograph)


def test_worse_latents_are_discarded(codec: glc.Codec, photograph: np.ndarray) -> None:
    leaps = LatentOptimizer(2, distance=Coarse(), step_size=100)
    assert codec.compress(photograph, optimize_latent=leaps) == codec.compress(photograph)


def test_target_holds_with_latent_optimization(codec: glc.Codec, photograph: np.ndarray) -> None:
    plain = codec.compress(photograph, target_bpp=0.07)
    searched = codec.compress(
        photograph, target_bpp=0.07, optimize_latent=LatentOptimizer(6, distance=Coarse())
    )
    most = 0.07 * PIXELS[0] * PIXELS[1] / 8
    assert (1 - TOLERANCE) * most <= len(searched) <= most
    assert distance(codec, searched, photograph) < 0.97 * distance(codec, plain, photograph)


def test_tiling_costs_little_distortion(codec: glc.Codec, photograph: np.ndarray) -> None:
    plain, whole, tiled = (
        distance(codec, codec.compress(photograph, optimize_latent=optimize_latent), photograph)
        for optimize_latent in (
            None,
            LatentOptimizer(6, distance=Coarse()),
            LatentOptimizer(6, distance=Coarse(), tile=64, margin=64),
        )
    )
    assert plain - tiled > 0.8 * (plain - whole)


@pytest.mark.parametrize(
    ("height", "width", "side", "margin"), [(32, 48, 8, 4), (20, 36, 16, 4), (4, 4, 64, 4)]
)
def test_tiles_change_every_position_once(height: int, width: int, side: int, margin: int) -> None:
    changed = torch.zeros(height, width)
    for tile in _tiles(height, width, side, margin):
        part = changed[tile.top : tile.bottom, tile.left : tile.right]
        assert part.shape == tile.inside.shape
        assert max(part.shape) <= side + 2 * margin
        # What the coder takes: multiples of 4.
        assert not any(edge % 4 for edge in (*part.shape, tile.top, tile.left))
        part += tile.inside
    assert changed.eq(1).all()


def test_only_its_memory_argument_decides_the_tile_size(tmp_path: Path) -> None:
    model = Variants(tmp_path).codec("categorical").model
    x = torch.zeros(1, 3, 512, 512)
    latent = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = []
    for memory in (4_000_000_000, 120_000_000, 40_000_000):
        within = LatentOptimizer(1, distance=Coarse(), margin=32, memory=memory)
        within(model, x, latent, 1.0, None)
        assert isinstance(within.distance, Coarse)
        seen.append(within.distance.widest)
    assert seen[0] == 512 * 512 > seen[1] > seen[2]
    with pytest.raises(MemoryLimitError, match=r"--optimize-latent needs .* --memory"):
        LatentOptimizer(1, distance=Coarse())(model, x, latent, 1.0, 100_000_000)


def test_no_memory_is_retained(tmp_path: Path) -> None:
    model = Variants(tmp_path).codec("categorical").model
    seen = []

    class Rooted(Coarse):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            # A root keeps its own result for the way back, as the one that ends LPIPS does.
            root = (super().forward(x, y) + 1).sqrt()
            seen.append(weakref.ref(root))
            return root

    LatentOptimizer(1, distance=Rooted())(
        model, torch.zeros(1, 3, 64, 64), torch.randn(1, 16, 8, 8), 1.0, None
    )
    gc.collect()
    assert len(seen) > 2
    assert not any(root() is not None for root in seen)


def test_target_met_only_by_the_encoders_latent_keeps_it(codec: glc.Codec, photograph: np.ndarray) -> None:
    class Noise:
        """A search whose result needs more bits."""

        def __call__(self, model: nn.Module, x: Tensor, latent: Tensor, *more: object) -> Tensor:
            return latent + 3 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))

    least = codec.compress(photograph, 0)
    assert len(codec.compress(photograph, 0, optimize_latent=Noise())) > len(least)
    assert codec.compress(photograph, target_size=len(least), optimize_latent=Noise()) == least


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_coder_is_supported(variant: str, tmp_path: Path, photograph: np.ndarray) -> None:
    made = Variants(tmp_path).codec(variant)
    data = made.compress(photograph[:60, :90], 100 / 3, optimize_latent=LatentOptimizer(3, distance=Coarse()))
    assert made.from_symbols(made.symbols(data), (60, 90), made.rate_index(100 / 3)) == data
    assert (
        distance(made, data, photograph[:60, :90])
        <= distance(made, made.compress(photograph[:60, :90], 100 / 3), photograph[:60, :90]) + 0.01
    )


def test_images_too_small_for_lpips_are_unchanged(tmp_path: Path) -> None:
    made = Variants(tmp_path).codec("indices_map")
    tiny = fixed_image(8, 40)
    save_features(reference("squeeze"), tmp_path / FILES["squeeze"])
    optimize_latent = LatentOptimizer(2, weights_dir=tmp_path)
    assert made.compress(tiny, optimize_latent=optimize_latent) == made.compress(tiny)
    assert made.symbols(made.compress(fixed_image(32, 40), optimize_latent=optimize_latent)).y.shape == (
        1,
        4,
        5,
    )


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_steps_must_be_a_positive_integer(steps: float) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {steps}"):
        LatentOptimizer(steps, distance=Coarse())  # type: ignore[arg-type]
    assert LatentOptimizer(3.0, distance=Coarse()).steps == 3  # type: ignore[arg-type]

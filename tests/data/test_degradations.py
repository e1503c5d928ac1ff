import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glc.data.degradations import HOLE, JPEG, Blur, Degradation, Downsample, GaussianNoise, Mask, Mixture
from glc.data.images import from_uint8

ALL: dict[str, Callable[[], Degradation]] = {
    "gaussian_noise": lambda: GaussianNoise([5, 40]),
    "blur": Blur,
    "jpeg": JPEG,
    "downsample": Downsample,
    "mask": Mask,
    "mixture": lambda: Mixture({"blur": Blur(), "mask": Mask(), "gaussian_noise": GaussianNoise()}),
}


def smooth(batch: int = 2, side: int = 64) -> Tensor:
    coarse = torch.rand(batch, 3, 5, 5) * 1.4 - 0.7
    x = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
    return from_uint8(((x.clamp(-1, 1) + 1) * 127.5).round())


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("name", ALL)
def test_the_generator_decides_and_the_result_is_an_eight_bit_image(name: str) -> None:
    x = smooth(4)
    degrade = ALL[name]()
    first, again, other = (degrade(x, seeded(number)) for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    levels = (first.double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert first.abs().max() <= 1
    assert first.shape == x.shape

    # Without a generator the global one decides, which the stages seed at each step.
    torch.manual_seed(5)
    before = degrade(x)
    torch.manual_seed(5)
    assert torch.equal(degrade(x), before)


def test_noise_has_the_deviation_in_levels() -> None:
    grey = torch.full((1, 3, 128, 128), HOLE)
    noise = (GaussianNoise(20)(grey, seeded(0)) - grey) * 127.5
    assert noise.std().item() == pytest.approx(20, rel=0.02)
    assert noise.mean().abs() < 0.3


def test_blur_averages_as_a_gaussian_of_that_width_does() -> None:
    noise = torch.randn(1, 3, 96, 96) * 0.25
    blurred = Blur(2.0)(noise, seeded(0))[..., 12:-12, 12:-12]
    # White noise under a Gaussian of width s keeps 1 / (4 pi s^2) of its variance.
    assert blurred.var().item() == pytest.approx(0.25**2 / (4 * math.pi * 4), rel=0.15)


def test_jpeg_loses_more_at_lower_quality() -> None:
    x = GaussianNoise(10)(smooth(), seeded(0))
    errors = [(JPEG(quality)(x) - x).square().mean().item() for quality in (90, 30, 5)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_downsampling_loses_the_finest_pattern_only() -> None:
    rows = torch.arange(64)
    checks = ((rows[:, None] + rows) % 2 * 2 - 1).float().expand(1, 3, 64, 64)
    assert Downsample(2)(checks)[..., 8:-8, 8:-8].abs().max() < 0.05
    x = smooth(1)
    assert (Downsample(2)(x) - x)[..., 8:-8, 8:-8].abs().max() < 0.05


@pytest.mark.parametrize("boxes", [0.0, 1.0])
def test_holes_are_grey_and_the_rest_is_untouched(boxes: float) -> None:
    x = torch.full((3, 3, 80, 120), 0.5)
    x = from_uint8(((x + 1) * 127.5).round())
    done = Mask([0.2, 0.3], boxes, canvas=1)(x, seeded(3))
    lost = (done == HOLE).all(1)
    assert torch.equal(done[:, 0][~lost], x[:, 0][~lost])
    shares = lost.float().mean((1, 2))
    assert shares.min() >= 0.2
    assert shares.max() < 0.6
    assert len({mask.numpy().tobytes() for mask in lost}) == 3  # each image has its own


def test_crops_have_the_holes_of_whole_images() -> None:
    """Cut from masks of 512 pixels: the same share is lost on average, some crops lose nothing, some all."""
    generator = seeded(0)
    lost = torch.stack([Mask(0.5, boxes=1.0).sample_mask(48, 64, generator) for _ in range(120)])
    shares = lost.float().mean((1, 2))
    assert lost.shape == (120, 48, 64)
    assert 0.35 < shares.mean() < 0.75
    assert (shares == 0).sum() > 10
    assert (shares == 1).sum() > 10
    # An image that is no smaller has its own holes, of the share asked for.
    whole = Mask(0.3, boxes=1.0).sample_mask(512, 520, generator).float().mean()
    assert 0.3 <= whole < 0.6


def test_a_mixture_samples_by_weight() -> None:
    x = torch.full((200, 3, 16, 16), HOLE)
    parts = {"gaussian_noise": GaussianNoise(20), "blur": Blur(1.0), "mask": None}
    noisy = (Mixture(parts, {"blur": 3.0})(x, seeded(0)) != x).flatten(1).any(1)  # a blur leaves grey grey
    assert 30 < noisy.sum() < 70
    assert not (Mixture(parts, {"gaussian_noise": 0})(x, seeded(0)) != x).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(-1), r"degradation\.sigma must be a number or \[low, high\] within \[0"),
        (lambda: Blur([3, 1]), r"degradation\.sigma"),
        (lambda: JPEG(100), r"degradation\.quality .*\[1, 95\], got 100"),
        (lambda: Downsample([1, 2, 3]), r"degradation\.factor"),
        (lambda: Mask(1.0), r"degradation\.share"),
        (lambda: Mask(0.1, boxes=2), r"degradation\.boxes"),
        (lambda: Mask(0.1, canvas=0), r"degradation\.canvas"),
        (lambda: Mixture({"blur": None}), r"degradation\.weights: at least one must be positive"),
        (lambda: Mixture({"blur": Blur()}, {"blurr": 1}), r"degradation\.weights: unknown name blurr"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], Degradation], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

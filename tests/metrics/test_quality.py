import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import dists
from torchvision.models import vgg16

from glc.losses.perceptual import LPIPS, WeightsUnavailable
from glc.metrics import DISTS, MSSSIM, PSNR, NotMeasurable, QualityMetrics, bits_per_pixel
from glc.metrics.quality import SMALL
from tests.losses.test_perceptual import FILES, reference, save_features

pytestmark = pytest.mark.usefixtures("offline")


def images(count: int = 3, size: tuple[int, int] = (48, 64), noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Smooth random images, each disturbed more than the one before."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 3, 6, 8, generator=generator) * 2 - 1
    x = nn.functional.interpolate(coarse, size, mode="bilinear")
    strength = noise * torch.arange(1, count + 1).view(-1, 1, 1, 1) / count
    return x, x + strength * torch.randn(x.shape, generator=generator)


def as_levels(x: Tensor) -> np.ndarray:
    return np.clip(np.rint((x.double().numpy() + 1) * 127.5), 0, 255)


def reference_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """MS-SSIM of two images [3, H, W] in [0, 1], written from the paper with scipy in float64."""
    exponents = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()

    def smooth(values: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(values, window, axis=1, mode="mirror"), window, axis=2, mode="mirror")

    result = 1.0
    for scale, exponent in enumerate(exponents):
        mean_a, mean_b = smooth(a), smooth(b)
        variances = smooth(a * a) - mean_a**2 + smooth(b * b) - mean_b**2
        structure = (2 * (smooth(a * b) - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)
        if scale < 4:
            result *= structure[:, 5:-5, 5:-5].mean() ** exponent
            height, width = a.shape[1] // 2 * 2, a.shape[2] // 2 * 2
            a, b = (
                v[:, :height, :width].reshape(3, height // 2, 2, width // 2, 2).mean((2, 4)) for v in (a, b)
            )
        else:
            luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            result *= (luminance * structure).mean() ** exponent
    return result


def test_psnr_is_the_formula_per_image_on_saved_images() -> None:
    x, x_hat = images()
    x = torch.from_numpy(as_levels(x) / 127.5 - 1).float()
    error = ((as_levels(x) - as_levels(x_hat)) ** 2).mean((1, 2, 3))
    expected = 10 * np.log10(255**2 / error)
    metrics = QualityMetrics({"psnr": PSNR()})
    np.testing.assert_allclose(metrics.measure(x, x_hat)["psnr"], expected, rtol=1e-5)
    for batch in (slice(0, 1), slice(1, 3)):
        metrics.update(x[batch], x_hat[batch])
    # The mean over images: not over batches, nor of the pooled error.
    assert metrics.compute()["psnr"].item() == pytest.approx(expected.mean(), rel=1e-5)


def test_without_rounding_values_are_only_clamped() -> None:
    x, x_hat = images(noise=1.5)
    error = (x.clamp(-1, 1) - x_hat.clamp(-1, 1)).double().square().mean((1, 2, 3))
    got = QualityMetrics({"psnr": PSNR()}, eight_bit=False).measure(x, x_hat)["psnr"]
    torch.testing.assert_close(got.double(), 10 * torch.log10(4 / error), rtol=1e-5, atol=0)


def test_a_difference_below_half_a_level_is_no_difference() -> None:
    levels = torch.arange(256).float().repeat(3, 1).view(1, 3, 16, 16)
    x = levels / 127.5 - 1
    assert QualityMetrics({"psnr": PSNR()}).measure(x, x + 0.4 / 127.5)["psnr"].isinf().all()
    assert QualityMetrics({"psnr": PSNR()}).measure(x, x + 0.6 / 127.5)["psnr"].isfinite().all()


@pytest.mark.parametrize("size", [(176, 176), (200, 187)])
def test_ms_ssim_equals_an_independent_computation(size: tuple[int, int]) -> None:
    x, x_hat = images(2, size, noise=0.6)
    got = MSSSIM()(x, x_hat.clamp(-1, 1))
    unit = [((v.clamp(-1, 1) + 1) / 2).double().numpy() for v in (x, x_hat)]
    expected = [reference_ms_ssim(a, b) for a, b in zip(*unit, strict=True)]
    assert 0.3 < min(expected) < max(expected) < 0.99
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_small_images_are_skipped_with_the_reason() -> None:
    with pytest.raises(NotMeasurable, match="at least 176 pixels, got images of 180x175"):
        MSSSIM()(*images(1, (175, 180)))
    metrics = QualityMetrics({"psnr": PSNR(), "ms_ssim": MSSSIM()})
    with pytest.warns(UserWarning, match="ms_ssim is not measured for some images"):
        assert set(metrics.update(*images(2, (64, 64)))) == {"psnr"}
    assert set(metrics.compute()) == {"psnr"}
    assert "64x64" in metrics.unavailable["ms_ssim"]
    large = images(2, (176, 176))
    expected = metrics.update(*large)["ms_ssim"].mean()
    assert metrics.compute()["ms_ssim"] == expected  # the mean over those that could be measured
    assert not metrics.unavailable
    metrics.reset()
    assert metrics.compute() == {}


@pytest.mark.filterwarnings("ignore:lpips is not measured")
def test_image_too_small_for_a_network_omits_only_its_metric(tmp_path: Path) -> None:
    """AlexNet fails below 31 pixels with an error of PyTorch's own."""
    save_features(reference("alex"), tmp_path / FILES["alex"])
    metrics = QualityMetrics({"psnr": PSNR(), "lpips": LPIPS("alex", tmp_path)})
    for size in ((1, 1), (8, 40), (30, 30)):
        assert set(metrics.update(*images(1, size), bits=torch.ones(1))) == {"psnr", "bpp"}
    assert set(metrics.compute()) == {"psnr", "bpp"}
    assert re.search(r"images of 30x30 are too small for it \(.*size.*\)", metrics.unavailable["lpips"])
    expected = metrics.update(*images(1, (31, 31)))["lpips"].mean()
    assert metrics.compute()["lpips"] == expected

    class Broken(nn.Module):
        def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
            raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match=r"^a mistake$"):
        QualityMetrics({"broken": Broken()}).measure(*images(1, (SMALL, SMALL)))


def test_bits_per_pixel() -> None:
    bits = torch.tensor([3072.0, 1536.0, 0.0])
    assert bits_per_pixel(bits, 48, 64).tolist() == [1.0, 0.5, 0.0]
    metrics = QualityMetrics({})
    assert metrics.update(*images(), bits=bits)["bpp"].tolist() == [1.0, 0.5, 0.0]
    assert metrics.compute() == {"bpp": 0.5}
    assert not metrics.unavailable


def test_metrics_without_weights_are_omitted_and_other_errors_raised() -> None:
    def unavailable() -> nn.Module:
        raise WeightsUnavailable("no weights for vgg; fix: ...")

    # One that is set to null was not asked for.
    metrics = QualityMetrics({"psnr": partial(PSNR), "lpips": unavailable, "ms_ssim": None})
    assert metrics.names == ["psnr"]
    metrics.update(*images())
    assert set(metrics.compute()) == {"psnr"}
    metrics.reset()
    assert metrics.unavailable == {"lpips": "no weights for vgg; fix: ..."}
    with pytest.raises(ZeroDivisionError):
        QualityMetrics({"psnr": lambda: nn.Linear(1, 1 // 0)})


def test_nan_reaches_the_metrics() -> None:
    x, x_hat = images()
    x_hat[1, 0, 0, 0] = float("nan")
    metrics = QualityMetrics({"psnr": PSNR()})
    assert metrics.update(x, x_hat)["psnr"].isnan().tolist() == [False, True, False]
    assert metrics.compute()["psnr"].isnan()


def test_autocast_does_not_change_the_values() -> None:
    x, x_hat = images(1, (176, 176))
    metrics = QualityMetrics({"ms_ssim": MSSSIM()})
    expected = metrics.measure(x, x_hat)["ms_ssim"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(metrics.measure(x, x_hat)["ms_ssim"], expected)


class Spread(Metric):
    """A metric of a whole set: how far apart the largest and the smallest error are."""

    errors: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", default=[], dist_reduce_fx="cat")
        self.net = nn.Linear(3, 3)

    def update(self, x: Tensor, x_hat: Tensor) -> None:
        self.errors.append((x - x_hat).abs().mean((1, 2, 3)))

    def compute(self) -> Tensor:
        errors = torch.cat(list(self.errors)) if isinstance(self.errors, list) else self.errors
        return errors.max() - errors.min()


def test_set_metrics_are_supported_and_networks_stay_hidden() -> None:
    metrics = QualityMetrics({"psnr": PSNR(), "spread": Spread()}, eight_bit=False)
    x, x_hat = images()
    x_hat = x_hat.clamp(-1, 1)
    assert "spread" not in metrics.update(x[:2], x_hat[:2])
    metrics.update(x[2:], x_hat[2:])
    errors = (x - x_hat).abs().mean((1, 2, 3))
    torch.testing.assert_close(metrics.compute()["spread"], errors.max() - errors.min())
    assert not metrics.state_dict()
    assert not list(metrics.parameters())


def test_invalid_arguments_are_refused() -> None:
    x, x_hat = images()
    metrics = QualityMetrics({})
    with pytest.raises(ValueError, match=r"\[3, 3, 48, 64\] and \[3, 3, 48, 32\]"):
        metrics.update(x, x_hat[..., :32])
    with pytest.raises(ValueError, match=r"bits has shape \[\], expected one value per image: \[3\]"):
        metrics.update(x, x_hat, bits=torch.tensor(5.0))
    with pytest.raises(ValueError, match=r"metrics\.bpp"):
        QualityMetrics({"bpp": PSNR()})


@pytest.fixture(scope="module")
def stand_in() -> nn.Sequential:
    """The features of VGG16 with seeded weights that neither fade nor explode."""
    with torch.device("meta"):
        layers = vgg16().features
    layers.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(3)
    for parameter in layers.parameters():
        deviation = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(0, deviation, generator=generator)
    return layers


@pytest.fixture
def folder(stand_in: nn.Sequential, tmp_path: Path) -> Path:
    state = {f"features.{name}": value for name, value in stand_in.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16-mine.pth")
    return tmp_path


def noisy_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = nn.functional.interpolate(
        torch.rand(3, 3, 6, 8, generator=generator) * 2 - 1, (48, 64), mode="bilinear"
    )
    noise = torch.randn(x.shape, generator=generator) * torch.tensor([0.0, 0.1, 0.5]).view(3, 1, 1, 1)
    return x, (x + noise).clamp(-1, 1)


def test_dists_is_that_of_torchmetrics(
    folder: Path, stand_in: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dists, "vgg16", lambda weights: nn.ModuleDict({"features": stand_in}))
    x, x_hat = noisy_images()
    expected = dists.deep_image_structure_and_texture_similarity(
        (x_hat + 1) / 2, (x + 1) / 2, reduction="none"
    )
    metric = DISTS(folder)
    got = metric(x, x_hat)
    torch.testing.assert_close(got, expected.clone(), rtol=1e-4, atol=1e-6)
    assert got[0].item() == pytest.approx(0, abs=1e-5)
    assert 0.001 < got[1] < got[2]
    one = metric(x[1:2], x_hat[1:2])
    assert one.shape == (1,)
    assert not [*metric.state_dict(), *metric.parameters()]  # the network stays out of checkpoints
    torch.testing.assert_close(one, got[1:2], rtol=1e-4, atol=1e-6)


def test_missing_and_wrong_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"vgg16-397923af\.pth.*Fix: "):
        DISTS()
    torch.save({"features.0.weight": torch.zeros(1)}, folder / "vgg16-mine.pth")
    with pytest.raises(ValueError, match=r"vgg16-mine\.pth: not the weights of VGG16"):
        DISTS(folder)

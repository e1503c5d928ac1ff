"""FID, KID and CMMD with stand-in features, against computations of their own in numpy and scipy."""

import itertools
import json
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.kid import KernelInceptionDistance

from glc.metrics import CMMD, FID, KID, MSSSIM, PSNR, NotMeasurable, QualityMetrics, cut_patches, patch_count
from tests.programs import Started

KODAK = [(512, 768)] * 18 + [(768, 512)] * 6


def test_kodak_gives_the_published_counts() -> None:
    assert patch_count(KODAK) == 192
    assert patch_count(KODAK, size=64) == 4152


@pytest.mark.parametrize(
    ("size", "first", "second"),
    [
        ((256, 256), 1, 0),
        ((255, 4000), 0, 0),
        ((256, 4000), 15, 0),  # no whole patch below row 128
        ((383, 384), 1, 0),
        ((384, 384), 1, 1),
        ((512, 768), 6, 2),
        ((640, 640), 4, 4),  # half a patch is left over: the second grid is as large as the first
        ((1356, 2040), 35, 28),
        ((2040, 1356), 35, 28),
        ((1365, 2048), 40, 28),
    ],
)
def test_counts_by_hand(size: tuple[int, int], first: int, second: int) -> None:
    assert patch_count([size], shifted=False) == first
    assert patch_count([size, size, (512, 768)]) == 2 * (first + second) + 8


def test_only_this_reading_of_the_second_grid_explains_div2k() -> None:
    # A side of 2040 pixels holds 7 patches in both grids, whatever the other side is.
    assert {patch_count([(2040, other)]) % 7 for other in range(300, 2041, 12)} == {0}
    assert 6573 % 7 == 0
    # The other reading takes one row and one column less: 7 n + 6 (n - 1) patches from such an image.
    assert (6573 + 6 * 100) % 13 != 0


@pytest.mark.parametrize(("height", "width", "size"), [(40, 61, 16), (31, 16, 16), (20, 20, 7), (15, 40, 16)])
@pytest.mark.parametrize("shifted", [True, False])
def test_patches_are_those_of_the_count(height: int, width: int, size: int, shifted: bool) -> None:
    x = torch.arange(2 * 3 * height * width).view(2, 3, height, width)
    expected = [
        image[:, top : top + size, left : left + size]
        for shift in ((0, size // 2) if shifted else (0,))
        for image in x
        for top, left in itertools.product(range(shift, height, size), range(shift, width, size))
        if top + size <= height and left + size <= width
    ]
    patches = cut_patches(x, size, shifted)
    assert patches.shape == (len(expected), 3, size, size)
    assert patch_count([(height, width)] * 2, size, shifted) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(patches, expected, strict=True))


def test_a_patch_has_two_halves() -> None:
    with pytest.raises(ValueError, match="size=1: give a side of at least 2"):
        patch_count(KODAK, size=1)
    with pytest.raises(ValueError, match="size=0"):
        cut_patches(torch.zeros(1, 3, 8, 8), size=0)


SIZE = 16


class StandIn(nn.Module):
    """Twelve features of a patch: the means of its quarters, bent so that they are no mere averages."""

    def forward(self, patches: Tensor) -> Tensor:
        assert patches.dtype == torch.uint8
        return nn.functional.adaptive_avg_pool2d(patches.float() / 64, 2).flatten(1).sin()


def images(count: int = 3, side: int = 72) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(count, 3, 9, 9, generator=generator) * 2 - 1
    x = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    blurred = nn.functional.avg_pool2d(x, 9, 1, 4) * 0.8
    levels = [((v + 1) * 127.5).round() for v in (x, blurred)]
    return levels[0] / 127.5 - 1, levels[1] / 127.5 - 1


def features(x: Tensor) -> np.ndarray:
    """Of all patches, in float64, by way of the 8-bit levels."""
    levels = ((cut_patches(x, SIZE) + 1) * 127.5).round().byte()
    return StandIn()(levels).double().numpy()


def fid(a: np.ndarray, b: np.ndarray) -> float:
    covariances = [np.cov(v, rowvar=False) for v in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


def mmd(a: np.ndarray, b: np.ndarray, kernel: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """Unbiased estimate, pair by pair."""

    def within(v: np.ndarray) -> float:
        return np.mean([kernel(v[i], v[j]) for i in range(len(v)) for j in range(len(v)) if i != j])

    return within(a) + within(b) - 2 * np.mean([kernel(p, q) for p in a for q in b])


def cubic(p: np.ndarray, q: np.ndarray) -> float:
    return (p @ q / len(p) + 1) ** 3


def test_fid_equals_an_independent_computation() -> None:
    x, x_hat = images()
    metric = FID(SIZE, features=StandIn())
    metric.update(x[:1], x_hat[:1])
    metric.update(x[1:], x_hat[1:])
    expected = fid(features(x), features(x_hat))
    assert expected > 0.05
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    metric.reset()
    metric.update(x, x)
    assert metric.compute().item() == pytest.approx(0, abs=1e-5)


def test_fid_without_the_second_grid() -> None:
    x, x_hat = images()
    metric = FID(SIZE, shifted=False, features=StandIn())
    metric.update(x, x_hat)
    # On sides of four patches and a half, the first grid of all images comes before the second.
    first = [features(v)[: 16 * len(v)] for v in (x, x_hat)]
    assert metric.compute().item() == pytest.approx(fid(*first), rel=1e-5)
    assert metric.compute().item() != pytest.approx(fid(features(x), features(x_hat)), rel=1e-3)


def test_kid_over_all_patches_equals_an_independent_computation_and_torchmetrics() -> None:
    x, x_hat = images(2, 56)
    a, b = features(x), features(x_hat)
    metric = KID(SIZE, subsets=1, subset_size=len(a), features=StandIn())
    metric.update(x, x_hat)
    expected = mmd(a, b, cubic)
    assert expected > 0.01
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    theirs = KernelInceptionDistance(feature=StandIn(), subsets=1, subset_size=len(a))
    for v, real in ((x, True), (x_hat, False)):
        theirs.update(((cut_patches(v, SIZE) + 1) * 127.5).round().byte(), real=real)
    assert theirs.compute()[0].item() == pytest.approx(expected, rel=1e-3)


def test_kid_subsets_depend_only_on_its_seed() -> None:
    x, x_hat = images()

    def value(order: list[int], seed: int, **options: int) -> float:
        metric = KID(SIZE, subset_size=20, seed=seed, features=StandIn(), **options)
        for number in order:
            metric.update(x[number : number + 1], x_hat[number : number + 1])
        torch.manual_seed(len(order) + order[0])
        state = torch.get_rng_state()
        result = metric.compute().item()
        assert torch.equal(torch.get_rng_state(), state)
        return result

    few = value([0, 1, 2], 0, subsets=3)
    assert value([2, 0, 1], 0, subsets=3) == few  # nor does it depend on the order of the images
    assert value([0, 1, 2], 1, subsets=3) != few
    whole = mmd(features(x), features(x_hat), cubic)
    assert value([0, 1, 2], 0, subsets=300) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("options", [{"sigma": 0.5}, {}])
def test_cmmd_equals_an_independent_computation(unbiased: bool, options: dict[str, float]) -> None:
    x, x_hat = images(2, 56)
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (features(x), features(x_hat)))
    sigma = options.get("sigma", 10)

    def gaussian(p: np.ndarray, q: np.ndarray) -> float:
        return np.exp(-((p - q) ** 2).sum() / (2 * sigma**2))

    expected = mmd(a, b, gaussian)
    if not unbiased:
        own = [np.mean([gaussian(p, q) for p in v for q in v]) for v in (a, b)]
        expected = sum(own) - 2 * np.mean([gaussian(p, q) for p in a for q in b])
    metric = CMMD(SIZE, unbiased=unbiased, features=StandIn(), **options)
    metric.update(x, x_hat)
    assert abs(expected) > 1e-6
    assert metric.compute().item() == pytest.approx(1000 * expected, rel=1e-4)


def metrics_of_sets() -> dict[str, Metric | type[nn.Module]]:
    network = StandIn()
    return {
        "fid": FID(SIZE, features=network),
        "kid": KID(SIZE, subset_size=30, features=network),
        "cmmd": CMMD(SIZE, features=StandIn),
    }


def test_too_few_patches_are_not_measurable() -> None:
    x, x_hat = images()
    metrics = QualityMetrics(metrics_of_sets())
    metrics.update(x[:1, :, :SIZE, :SIZE], x_hat[:1, :, :SIZE, :SIZE])
    assert not metrics.compute()
    assert "at least 2 patches of 16 pixels, the images have 1" in metrics.unavailable["fid"]
    assert "at least 30 patches of 16 pixels, the images have 1; reduce" in metrics.unavailable["kid"]
    assert "at least 2" in metrics.unavailable["cmmd"]
    metrics.update(x, x_hat)  # and it goes on
    assert set(metrics.compute()) == {"fid", "kid", "cmmd"}
    assert not metrics.unavailable
    with pytest.raises(NotMeasurable):
        FID(SIZE, features=StandIn()).compute()


def test_images_smaller_than_a_patch_are_named() -> None:
    x, x_hat = images()
    metric = FID(SIZE, features=StandIn())
    metric.update(x, x_hat)
    expected = metric.compute()
    with pytest.warns(UserWarning, match="no patch of 16 pixels fits into images of 72x15"):
        metric.update(x[:, :, :15], x_hat[:, :, :15])
    assert torch.equal(metric.compute(), expected)


def test_nan_reaches_the_metrics() -> None:
    x, x_hat = images()
    x_hat[1, 0, 40, 40] = float("nan")
    metrics = QualityMetrics(metrics_of_sets())
    metrics.update(x, x_hat)
    values = metrics.compute()
    assert values.keys() == {"fid", "kid", "cmmd"}
    assert all(value.isnan() for value in values.values())
    metrics.reset()
    metrics.update(*images())
    assert all(value.isfinite() for value in metrics.compute().values())


@pytest.mark.parametrize("options", [{"subsets": 0}, {"subset_size": 1}])
def test_subsets_hold_pairs(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="KID: subsets="):
        KID(SIZE, features=StandIn(), **options)


SECOND = """
import importlib.util, json, sys, torch, torch.distributed as dist

spec = importlib.util.spec_from_file_location("stand_ins", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
dist.init_process_group("gloo", init_method=sys.argv[2], rank=1, world_size=2)
print(json.dumps(tests.measured([1, 2], [])))
dist.destroy_process_group()
"""


def measured(*shares: list[int]) -> list[dict[str, float]]:
    """Measure shares of the images, each of them from the start."""
    x, x_hat = images()
    bits = torch.tensor([100.0, 200.0, 900.0])
    metrics = QualityMetrics({**metrics_of_sets(), "psnr": PSNR(), "ms_ssim": MSSSIM()})
    found = []
    for share in shares:
        for i in share:
            metrics.update(x[i : i + 1], x_hat[i : i + 1], bits[i : i + 1])
        found.append({name: value.item() for name, value in metrics.compute().items()})
        metrics.reset()
    return found


def test_two_processes_compute_what_one_does() -> None:
    (expected,) = measured([0, 1, 2])
    assert expected.keys() == {"fid", "kid", "cmmd", "psnr", "bpp"}  # the images are too small for MS-SSIM
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    second = Started(["-c", SECOND, Path(__file__), address])
    try:
        torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=2)
        seen = measured([0], [0, 1, 2])  # the second time, the other process sees no image
    finally:
        done = second.finish(120)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert seen == [pytest.approx(expected, rel=1e-5)] * 2
    assert json.loads(done.stdout.splitlines()[-1]) == seen


def test_parts_that_are_merged_give_the_values_of_the_whole() -> None:
    """As shards of a collection: each accumulates, one process merges what they have written."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.rand(2, 1, 3, 48, 64, generator=generator) * 2 - 1 for _ in range(6)]

    def metrics() -> QualityMetrics:
        made = {"fid": FID, "kid": partial(KID, subset_size=20, subsets=3), "cmmd": CMMD}
        return QualityMetrics({name: metric(SIZE, features=StandIn()) for name, metric in made.items()})

    whole, merged = metrics(), metrics()
    for pair in pairs:
        whole.update(*pair)
    for shard in (pairs[3:], pairs[:1], pairs[1:3]):
        part = metrics()
        for pair in shard:
            part.update(*pair)
        merged.merge(load(save(part.accumulated())))
    expected, found = whole.compute(), merged.compute()
    assert found.keys() == expected.keys() == {"fid", "kid", "cmmd"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert merged.not_mergeable == []
    other = QualityMetrics(
        {"mine": type("Mine", (KID,), {"full_state_update": True})(16, features=nn.Flatten())}
    )
    assert other.not_mergeable == ["mine"]

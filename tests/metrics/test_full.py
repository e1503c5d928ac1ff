"""The metrics of an evaluation: configurations, and LPIPS with published weights where they are at hand."""

import os
import warnings
from pathlib import Path

import lpips
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from glc.losses.perceptual import LPIPS
from glc.metrics import QualityMetrics

ROOT = Path(__file__).parents[2]
FULL = {"psnr", "ms_ssim", "lpips", "dists", "fid_256", "kid_256", "fd_dinov2", "cmmd"}


def make(*overrides: str) -> QualityMetrics:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose(overrides=list(overrides)).metrics)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("choice", "names"), [("full", FULL), ("full_64", FULL | {"fid_64", "kid_64"})])
def test_unavailable_metrics_have_a_reason_and_the_rest_is_measured(
    choice: str, names: set[str], tmp_path: Path
) -> None:
    metrics = make(f"+metrics={choice}", f"metrics.weights_dir={tmp_path}")
    x = torch.rand(1, 3, 176, 180) * 2 - 1
    metrics.update(x, x * 0.9, bits=torch.tensor([8.0]))
    assert set(metrics.compute()) == {"psnr", "ms_ssim", "bpp"}
    assert set(metrics.unavailable) == names - {"psnr", "ms_ssim"}
    for name, reason in metrics.unavailable.items():
        assert "Fix: " in reason
        assert str(tmp_path) in reason or name == "fd_dinov2"  # which lacks a package first


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("choice", "names"), [("default", {"psnr", "ms_ssim", "bpp"}), ("none", {"bpp"})])
def test_smaller_choices_build(choice: str, names: set[str]) -> None:
    metrics = make(f"+metrics={choice}")
    x = torch.rand(1, 3, 176, 176) * 2 - 1
    metrics.update(x, x * 0.9, bits=torch.ones(1))
    assert set(metrics.compute()) == names
    if choice == "default":
        assert "alexnet-owt-7be5be79.pth" in metrics.unavailable["lpips_alex"]


def test_a_wrong_folder_is_noticed_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"metrics\.weights_dir='\S+/nowhere' is not a folder"):
        make("+metrics=full", f"metrics.weights_dir={tmp_path}/nowhere")


@pytest.mark.skipif("GLC_WEIGHTS" not in os.environ, reason="GLC_WEIGHTS: no folder of published weights")
def test_lpips_is_that_of_the_lpips_package() -> None:
    folder = Path(os.environ["GLC_WEIGHTS"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    (path,) = folder.glob("alexnet*.pth")
    state = torch.load(path, weights_only=True)
    for name, parameter in reference.net.named_parameters():  # "slice1.0.weight" is layer 0
        parameter.data = state[f"features.{name.partition('.')[2]}"]
    coarse = torch.rand(2, 3, 16, 24) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, (128, 192), mode="bilinear")
    x_hat = (x + 0.2 * torch.randn_like(x)).clamp(-1, 1)
    with torch.no_grad():
        expected = reference(x, x_hat).flatten()
        got = LPIPS("alex", folder)(x, x_hat)
    assert expected.min() > 0.05
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

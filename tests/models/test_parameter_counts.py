"""The configured models have the published sizes, part by part."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from glc.models.autoencoder import VQAutoencoder
from glc.models.code_predictor import CodePredictor
from glc.models.coder import IndicesMapCoder, TransformCoder
from glc.models.glc import GLC, count_parameters
from glc.models.hyperprior import FactorizedHyperprior

CONF = Path(__file__).parents[2] / "conf"


def configure(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["stage=transform", *overrides])


def build(node: DictConfig) -> Any:
    with torch.device("meta"):  # shapes without memory
        return instantiate(node)


def codec(model: str, *overrides: str) -> GLC:
    """The codec that stage II trains and that is deployed: no predictor, no codebook C."""
    network = build(configure(f"model={model}", *overrides).stage.module.model)
    assert isinstance(network, GLC)
    return network


def vqgan(model: str) -> VQAutoencoder:
    cfg = configure(f"model={model}").model
    return VQAutoencoder(build(cfg.encoder), build(cfg.decoder), build(cfg.quantizer))


@pytest.mark.parametrize(
    ("model", "count", "factor", "codes", "dim"),
    [
        ("natural", 76_073_859, 16, 16384, 256),
        ("facial", 63_740_099, 32, 1024, 256),
        ("natural_f8", None, 8, 256, 4),
    ],
)
def test_vqgan(model: str, count: int | None, factor: int, codes: int, dim: int) -> None:
    network = vqgan(model)
    assert network.quantizer.codebook().shape == (codes, dim)
    assert network.encoder.downsampling == factor
    x = torch.empty(1, 3, 2 * factor, 3 * factor, device="meta")
    assert network.encoder(x).shape == (1, dim, 2, 3)
    assert network.decoder(network.encoder(x)).shape == x.shape
    if count is not None:
        assert count_parameters(network) == count


def test_deployed_codecs_and_code_predictor() -> None:
    natural = 104_639_107
    assert count_parameters(codec("natural")) == natural
    # The published VQGAN without C, and the natural model's coder with a C_h of 1024 codes instead of 16384.
    coder = natural - (76_073_859 - 16384 * 256) - (16384 - 1024) * 256
    assert count_parameters(codec("facial")) == (63_740_099 - 1024 * 256) + coder
    predictor = build(configure("model=natural").stage.module.predictor)
    assert isinstance(predictor, CodePredictor)
    assert count_parameters(predictor) == 27_577_344


def stored(module: nn.Module) -> int:
    """Numbers that a file of weights holds, fixed tables included."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


def test_small_codecs_are_small() -> None:
    assert 2e6 < stored(codec("small")) <= 12e6  # 24 MB in half precision
    for variants in ("[]", "factorized", "indices_map"):
        assert stored(codec("tiny", f"model/variants={variants}")) < 1e6


def test_config_groups_select_the_ablations() -> None:
    assert isinstance(codec("tiny", "model/variants=indices_map").coder, IndicesMapCoder)
    factorized = codec("tiny", "model/variants=factorized").coder
    assert isinstance(factorized, TransformCoder)
    assert isinstance(factorized.hyper, FactorizedHyperprior)
    for variant, size, levels in (("[fsq,fsq_hyper]", 1024, 5), ("fsq_16384", 16384, 7)):
        finite = configure("model=small", f"model/variants={variant}").model
        c, coder = build(finite.quantizer), build(finite.coder)
        assert (c.size, c.levels, build(finite.encoder).latent_channels) == (size, (4,) * levels, levels)
        assert (coder.hyper.quantizer.size, coder.hyper.quantizer.levels) == (size, (4,) * levels)
        assert build(finite.predictor).head[1].out_features == size
    refiner = codec("tiny", "model/variants=refiner").refiner
    assert refiner is not None
    assert refiner.quantizer.size == configure("model=tiny").model.codebook_size
    assert configure("model=tiny", "model/variants=no_code_prediction").stage.module.predictor is None


@pytest.mark.parametrize("model", ["natural", "facial", "natural_f8", "small", "tiny"])
def test_attention_windows_follow_the_configuration(model: str) -> None:
    for choice, window in (("32", 32), ("16", 16), ("64", 64), ("null", None)):
        network = codec(model, f"model.window={choice}")
        windows = {module.window for module in network.modules() if hasattr(module, "window")}
        assert windows == {window}

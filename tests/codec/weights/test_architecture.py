"""Limits of a description: the classes it may name and the memory it may allocate."""

import json
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from glc.codec.bitstream import MAX_RATES
from glc.codec.weights.architecture import Budget
from glc.codec.weights.file import read_weights
from glc.errors import OverBudgetError, WeightsError

SMALL_ENCODER = {"_target_": "glc.models.autoencoder.Encoder", "channels": 8, "multipliers": [1]}
Described = Callable[[Mapping[tuple[str, ...], Any]], Path]


@pytest.fixture
def described(rewrite: Callable[..., Path]) -> Described:
    """Write a codec's weights file that describes another network than it holds."""

    def described(changes: Mapping[tuple[str, ...], Any]) -> Path:
        def edit(_: object, metadata: dict[str, str]) -> None:
            description = json.loads(metadata["model"])
            for path, value in changes.items():
                place = description
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
            metadata["model"] = json.dumps(description)

        return rewrite(edit)

    return described


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("encoder", "channels"), 1 << 20),
        (("decoder", "latent_channels"), 1 << 30),
        (("encoder", "multipliers"), [1] * 5 + [1 << 16]),
        (("encoder", "num_blocks"), 1 << 40),
        (("coder", "hyper", "codebook_size"), 1 << 36),
        (("decoder", "num_blocks"), 1 << 40),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_huge_descriptions_are_refused(path: tuple[str, ...], value: Any, described: Described) -> None:
    bad = described({path: value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=r"changed\.safetensors.*more than its file has"):
        read_weights(bad)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_many_empty_tensors_are_refused(described: Described) -> None:
    blocks = {("decoder", "num_blocks"): 1 << 40, ("decoder", "channels"): 0, ("decoder", "norm"): "pixel"}
    with pytest.raises(WeightsError, match=r"changed\.safetensors.*more than its file has"):
        read_weights(described(blocks))


def test_num_rates_is_checked_before_allocation(
    described: Described, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = described({("coder", "num_rates"): MAX_RATES + 1})
    monkeypatch.setattr("glc.models.transform.RateScaler.__init__", lambda *_: pytest.fail("too late"))
    with pytest.raises(WeightsError, match=r"changed\.safetensors: .*at most 16 rate points, not 17"):
        read_weights(bad)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("encoder",), 5, "its encoder must be Encoder, not int"),
        (("decoder",), SMALL_ENCODER, "its decoder must be Decoder, not Encoder"),
        (("coder",), 5, "its coder must be TransformCoder or IndicesMapCoder, not int"),
        (("refiner",), "none", "its refiner must be CodePredictionRefiner or null, not str"),
        (("coder", "hyper"), None, "its hyper must be CategoricalHyperprior or FactorizedHyperprior"),
        (("coder", "context"), [], "its context must be QuadtreeContext, not list"),
        (("encoder", "window"), 1.5, "its window must be a positive integer, not 1.5"),
        (("decoder", "window"), True, "its window must be"),
        (("decoder", "stem"), 0, "its stem must be"),
        (("coder", "num_rates"), 4.0, "its num_rates must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_networks_of_the_wrong_type_are_refused(
    path: tuple[str, ...], value: Any, complaint: str, described: Described
) -> None:
    with pytest.raises(WeightsError, match=rf"changed\.safetensors: .*{complaint}"):
        read_weights(described({path: value}))


@pytest.mark.parametrize("target", ["os.system", "torch.hub.load", "glc.cli.main", "builtins.eval", 7, None])
def test_descriptions_may_name_only_networks_of_glc(target: object, described: Described) -> None:
    bad = described({("encoder", "_target_"): target})
    with pytest.raises(WeightsError, match=r"changed\.safetensors: .*(not a network|name of a network)"):
        read_weights(bad)


def test_every_factory_function_is_counted() -> None:
    for make in (
        lambda: torch.empty(300, 400),
        lambda: torch.zeros((300, 400)),
        lambda: torch.ones(size=(300, 400)),
        lambda: torch.randn(torch.Size([120000])),
        lambda: torch.full((120000,), 0.5),
        lambda: torch.arange(120000),
        lambda: torch.linspace(0, 1, 120000),
        lambda: torch.eye(350),
        lambda: torch.nn.Linear(300, 398),
        lambda: [torch.empty(1) for _ in range(120)],
    ):
        with Budget(123000):
            make()
        with pytest.raises(OverBudgetError, match="more than 110,000 elements"), Budget(110000):
            make()

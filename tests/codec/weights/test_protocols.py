"""What the codec asks of networks: our own have it."""

import pytest
import torch
from torch import nn

from glc.codec.weights import protocols
from glc.codec.weights.architecture import build
from glc.codec.weights.protocols import missing_members
from glc.models.quantizer import VectorQuantizer
from tests.codec.fixed_model import fixed_description


@pytest.mark.parametrize("hyper", ["categorical", "factorized"])
def test_our_own_networks_have_all_members(hyper: str) -> None:
    model = build(fixed_description(hyper))  # type: ignore[arg-type]
    for network, protocol in (
        (model.encoder, protocols.EncoderNetwork),
        (model.decoder, protocols.DecoderNetwork),
        (model.coder, protocols.LatentCoder),
        (model.coder.hyper, protocols.Hyperprior),
        (model.coder.context, protocols.ContextModel),
        (VectorQuantizer(4, 2), protocols.Quantizer),
    ):
        assert missing_members(network, protocol) == []


def test_missing_members_are_listed() -> None:
    assert missing_members(nn.Identity(), protocols.DecoderNetwork) == ["latent_channels", "downsampling"]
    network = nn.Identity()
    network.analysis = network.synthesis = nn.Identity()
    network.decode = torch.clone
    assert missing_members(network, protocols.Hyperprior) == ["quantizer or density"]
    network.density = nn.Identity()
    assert missing_members(network, protocols.Hyperprior) == []

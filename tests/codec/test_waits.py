"""Number of device synchronisations in entropy coding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glc.data.images import to_input
from glc.models.context import STEPS
from tests.codec.fixed_model import fixed_image
from tests.codec.variants import Variants


class Waits(TorchFunctionMode):
    """Counts calls that would wait for a GPU; on a CPU they cost nothing, but they are the same calls."""

    number = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Count a call and pass it on."""
        selects = func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        if selects or func in (Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.nonzero, Tensor.__bool__):
            self.number += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("count", [1, 3])
def test_one_device_synchronisation_per_encode_and_per_decoding_step(count: int, variants: Variants) -> None:
    codec = variants.codec("categorical")
    images = [fixed_image(64, 96, seed) for seed in range(count)]
    codec.symbols(codec.compress(images[0]))  # the kernels test themselves at their first use
    rates = torch.ones(count)
    with torch.inference_mode():
        latent = codec.networks.encode([to_input(image) for image in images])
        # Of the rate points' check, which a GPU is spared, nothing is counted.
        analysis, synthesis = codec.latent_codec.coder.analysis, codec.latent_codec.coder.synthesis
        with Waits() as check:
            synthesis(analysis(latent, rates), rates)
        with Waits() as encoding:
            payloads, symbols = codec.latent_codec.encode(latent, rates)
        with Waits() as decoding:
            decoded = codec.latent_codec.decode(payloads, (latent.shape[2], latent.shape[3]), rates)
    assert decoded.symbols == symbols
    # Whether y is finite; symbols, classes, z, and rate indexes for the tables of z.
    assert encoding.number - check.number // 2 == 1 + 4
    # Rate indexes, before all else; a step's mask and classes; all symbols, for who asked.
    assert decoding.number - check.number // 2 == 1 + 2 * STEPS + 1

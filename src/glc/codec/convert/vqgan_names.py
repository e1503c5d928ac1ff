"""Third-party names of the blocks of a VQGAN's encoder and decoder, which glc numbers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from glc.layers.blocks import Downsample, ResidualBlock, Upsample, WindowAttention
from glc.models.autoencoder import Encoder

Names = Mapping[str, str]
"""Maps names of modules or parameters of glc to third-party names, including everything below them."""

_RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"}


def _named(number: int, block: nn.Module, theirs: str, skip: str) -> Iterator[tuple[str, str]]:
    """Yield the pairs of names (glc's, third-party) within a block; one pair for a single layer."""
    ours, inner = f"blocks.{number}", {}
    if isinstance(block, ResidualBlock):
        inner = {**_RESIDUAL, "skip": skip}
    elif isinstance(block, WindowAttention):
        inner = _ATTENTION
    elif isinstance(block, Downsample | Upsample):
        inner = {"conv": "conv"}
    yield from ((f"{ours}.{name}", f"{theirs}.{other}") for name, other in inner.items())
    if not inner and next(block.parameters(), None) is not None:
        yield ours, theirs


def _is_projection(block: nn.Module) -> bool:
    return isinstance(block, nn.Conv2d) and block.kernel_size == (1, 1)


def flat(prefix: str) -> Callable[[Any], Names]:
    """Return the table of a layout that numbers all blocks, as CodeFormer and GLC do.

    Args:
        prefix: of the encoder or decoder, with its dot. The decoder's projection is not numbered.
    """

    def names(network: Any) -> Names:
        table: dict[str, str] = {}
        before = int(_is_projection(network.blocks[0]))
        for i, block in enumerate(network.blocks):
            theirs = f"blocks.{i - before}"
            if _is_projection(block):
                theirs = "quant_conv" if i else "post_quant_conv"
            table.update(_named(i, block, prefix + theirs, "conv_out"))
        return table

    return names


def by_level(network: Any) -> Names:
    """Return the table of a layout that groups blocks by level, as taming-transformers does."""
    blocks, encodes = list(network.blocks), isinstance(network, Encoder)
    prefix, side, resample = ("encoder", "down", "downsample") if encodes else ("decoder", "up", "upsample")
    convolutions = [i for i, b in enumerate(blocks) if isinstance(b, nn.Conv2d) and not _is_projection(b)]
    norm = next(i for i, block in enumerate(blocks) if isinstance(block, nn.GroupNorm))
    middle = norm - 3 if encodes else convolutions[0] + 1
    single = {
        convolutions[0]: f"{prefix}.conv_in",
        middle: f"{prefix}.mid.block_1",
        middle + 1: f"{prefix}.mid.attn_1",
        middle + 2: f"{prefix}.mid.block_2",
        norm: f"{prefix}.norm_out",
        convolutions[-1]: f"{prefix}.conv_out",
    }
    level = 0 if encodes else sum(isinstance(block, Upsample) for block in blocks)
    table: dict[str, str] = {}
    counts: dict[str, int] = {}
    for i, block in enumerate(blocks):
        if i in single:
            theirs = single[i]
        elif _is_projection(block):
            theirs = "quant_conv" if encodes else "post_quant_conv"
        elif isinstance(block, Downsample | Upsample):
            theirs = f"{prefix}.{side}.{level}.{resample}"
            level, counts = level + (1 if encodes else -1), {}
        else:
            kind = "attn" if isinstance(block, WindowAttention) else "block"
            theirs = f"{prefix}.{side}.{level}.{kind}.{counts.get(kind, 0)}"
            counts[kind] = counts.get(kind, 0) + 1
        table.update(_named(i, block, theirs, "nin_shortcut"))
    return table

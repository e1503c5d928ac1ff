"""The layout of taming-transformers' VQGANs (f=16 with 16384 codes, and others) and latent diffusion's."""

import re

from glc.codec.convert.layout import Layout, Network, Shapes, size_reader
from glc.codec.convert.vqgan_names import Structure, codebook, level_decoder_names, level_encoder_names

KIND = "taming"
TITLE = "VQGAN of taming-transformers"
SIGNS = ("encoder.down.", "decoder.up.")
"""Starts of names that only this layout has."""
IGNORED = ("loss.", "model_ema.")
"""The discriminator and LPIPS of its training, and a second copy of the weights."""

_RESIDUAL = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")


def layout(
    channels: int = 128,
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
    num_blocks: int = 2,
    latent_channels: int = 256,
    codes: int = 16384,
    level_attention: bool = True,
) -> Layout:
    """Return the layout for a VQGAN of given sizes, by default the one that GLC starts from."""
    structure = Structure(
        latent_channels=latent_channels,
        channels=channels,
        multipliers=multipliers,
        num_blocks=num_blocks,
        decoder_blocks=num_blocks + 1,
        out_activation=True,
        projection=True,
        level_attention=level_attention,
    )
    return Layout(
        kind=KIND,
        title=TITLE,
        networks={
            "encoder": Network(structure.encoder(), level_encoder_names(structure)),
            "decoder": Network(structure.decoder(), level_decoder_names(structure)),
            "quantizer": Network(
                codebook(codes, latent_channels), {"embedding": "quantize.embedding.weight"}
            ),
        },
        ignored=IGNORED,
    )


def read(shapes: Shapes) -> Layout:
    """Return the layout for the sizes of a file's tensors; levels and blocks are counted by their names."""
    size = size_reader(shapes)
    channels = size("encoder.conv_in.weight", 0, 128)
    widths: dict[int, int] = {}
    numbers: dict[int, set[int]] = {}
    for name, shape in shapes.items():
        if (match := _RESIDUAL.fullmatch(name)) and shape:
            widths[int(match[1])] = shape[0]
            numbers.setdefault(int(match[1]), set()).add(int(match[2]))
    # By the names alone: a number that stands for itself could ask for any number of blocks.
    count = max(map(len, numbers.values()), default=0)
    whole = widths and sorted(widths) == list(range(len(widths)))
    whole = whole and all(found == set(range(count)) for found in numbers.values())
    if not whole or not channels or any(width % channels for width in widths.values()):
        return layout()
    last = len(widths) - 1
    return layout(
        channels=channels,
        multipliers=tuple(widths[level] // channels for level in range(last + 1)),
        num_blocks=count,
        latent_channels=size("quant_conv.weight", 0, 256),
        codes=size("quantize.embedding.weight", 0, 16384),
        level_attention=any(name.startswith(f"encoder.down.{last}.attn.") for name in shapes),
    )

"""The layout of CodeFormer's VQGAN for aligned faces of 512 pixels (f=32, 1024 codes)."""

from glc.codec.convert.layout import Layout, Network, Shapes, size_reader
from glc.codec.convert.vqgan_names import Structure, codebook, flat_decoder_names, flat_encoder_names

KIND = "codeformer"
TITLE = "CodeFormer VQGAN"
SIGNS = ("generator.blocks.", "encoder.blocks.")
"""Starts of names that only this layout has."""

MULTIPLIERS = (1, 2, 2, 4, 4, 8)


def layout(channels: int = 64, latent_channels: int = 256, codes: int = 1024) -> Layout:
    """Return the layout for a VQGAN of given sizes, by default the published one's."""
    structure = Structure(
        latent_channels=latent_channels,
        channels=channels,
        multipliers=MULTIPLIERS,
        num_blocks=2,
        decoder_blocks=2,
        out_activation=False,
        projection=False,
    )
    return Layout(
        kind=KIND,
        title=TITLE,
        networks={
            "encoder": Network(structure.encoder(), flat_encoder_names(structure, "encoder.")),
            "decoder": Network(structure.decoder(), flat_decoder_names(structure, "generator.")),
            "quantizer": Network(
                codebook(codes, latent_channels), {"embedding": "quantize.embedding.weight"}
            ),
        },
    )


def read(shapes: Shapes) -> Layout:
    """Return the layout for the sizes of a file's tensors."""
    size = size_reader(shapes)
    return layout(
        channels=size("encoder.blocks.0.weight", 0, 64),
        latent_channels=size("quantize.embedding.weight", 1, 256),
        codes=size("quantize.embedding.weight", 0, 1024),
    )

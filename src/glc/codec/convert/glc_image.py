"""The layout of the released GLC image model: the codec, stage I's codebook and two code predictors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glc.codec.convert.layout import Layout, Names, Network, Shapes, size_reader
from glc.codec.convert.vqgan_names import Structure, codebook, flat_decoder_names, flat_encoder_names
from glc.models.context import STEPS

KIND = "glc"
TITLE = "GLC image model"
SIGNS = ("vqgan.", "z_vq.", "y_spatial_prior")
"""Starts of names that only this layout has."""

MULTIPLIERS = (1, 1, 2, 2, 4)
DEPTH = 3
"""Shared blocks of the context model."""
HEADS, LAYERS = 8, 9
SCALE_BOUND = 1e-5
"""Of the published network; it enters its estimate of bits."""


@dataclass(frozen=True)
class Sizes:
    """Widths and counts; the defaults are the released model's.

    Args:
        channels: of the VQGAN at the picture's resolution.
        latent_channels: of l.
        codes: of C.
        hyper_codes: of C_h.
        width: N, channels of y.
        rates: K.
        predictor_width: of the code predictors.
        predictor_grid: side of their grid of positions.
    """

    channels: int = 128
    latent_channels: int = 256
    codes: int = 16384
    hyper_codes: int = 16384
    width: int = 256
    rates: int = 4
    predictor_width: int = 512
    predictor_grid: int = 16

    @classmethod
    def read(cls, shapes: Shapes) -> "Sizes":
        """Read the sizes from the shapes of a file's tensors, the released model's where one is missing."""
        size, default = size_reader(shapes), cls()
        grid = size("code_pred_loss.position_emb", 0, default.predictor_grid**2)
        return cls(
            channels=size("vqgan.encoder.blocks.0.weight", 0, default.channels),
            latent_channels=size("vqgan.encoder.quant_conv.weight", 0, default.latent_channels),
            codes=size("vqgan.quantize.embedding.weight", 0, default.codes),
            hyper_codes=size("z_vq.embedding.weight", 0, default.hyper_codes),
            width=size("q_enc", 1, size("z_vq.embedding.weight", 1, default.width)),
            rates=size("q_enc", 0, default.rates),
            predictor_width=size("code_pred_loss.position_emb", 1, default.predictor_width),
            predictor_grid=math.isqrt(grid),
        )


def layout(sizes: Sizes | None = None) -> Layout:
    """Return the layout for a model of given sizes, by default the released one's."""
    sizes = sizes or Sizes()
    structure = Structure(
        latent_channels=sizes.latent_channels,
        channels=sizes.channels,
        multipliers=MULTIPLIERS,
        num_blocks=2,
        decoder_blocks=3,
        out_activation=True,
        projection=True,
    )
    predictor = {
        "_target_": "glc.models.code_predictor.CodePredictor",
        "latent_channels": sizes.latent_channels,
        "codebook_size": sizes.codes,
        "width": sizes.predictor_width,
        "heads": HEADS,
        "layers": LAYERS,
        "grid": sizes.predictor_grid,
    }
    return Layout(
        kind=KIND,
        title=TITLE,
        networks={
            "encoder": Network(structure.encoder(), flat_encoder_names(structure, "vqgan.encoder.")),
            "decoder": Network(structure.decoder(), flat_decoder_names(structure, "vqgan.generator.")),
            "coder": Network(
                _coder(sizes), _coder_names(), frozenset({"analysis.scaler.scale", "synthesis.scaler.scale"})
            ),
            "quantizer": Network(
                codebook(sizes.codes, sizes.latent_channels),
                {"embedding": "vqgan.quantize.embedding.weight"},
                optional=True,
            ),
            "predictor": Network(predictor, _predictor_names("code_pred_loss"), optional=True),
            "pixel_predictor": Network(predictor, _predictor_names("code_pred_pix_loss"), optional=True),
        },
    )


def codec_description(networks: Mapping[str, Network]) -> dict[str, Any]:
    """Return the description of the whole codec, for a weights file."""
    parts = {name: dict(networks[name].description) for name in ("encoder", "decoder", "coder")}
    return {"_target_": "glc.models.glc.GLC", **parts}


def _coder(sizes: Sizes) -> dict[str, Any]:
    return {
        "_target_": "glc.models.coder.TransformCoder",
        "latent_channels": sizes.latent_channels,
        "hyper": {
            "_target_": "glc.models.hyperprior.CategoricalHyperprior",
            "channels": sizes.width,
            "codebook_size": sizes.hyper_codes,
        },
        "context": {
            "_target_": "glc.models.context.QuadtreeContext",
            "channels": sizes.width,
            "depth": DEPTH,
            "scale_bound": SCALE_BOUND,
        },
        "num_rates": sizes.rates,
    }


# Within a block: our names, theirs. Both kinds end in the same feed-forward layer.
_FEED_FORWARD = {"1.expand": "block.1.conv", "1.project": "block.1.conv_out"}
_DEPTH_CONV = {
    "0.mix": "block.0.conv1.0",
    "0.depthwise": "block.0.depth_conv",
    "0.project": "block.0.conv2",
    "0.skip": "block.0.adaptor",
    **_FEED_FORWARD,
}
_GATED = {
    "0.mix": "block.0.conv1.0",
    "0.depthwise": "block.0.conv1.2",
    "0.gate": "block.0.conv2",
    "0.project": "block.0.out_conv",
    "0.skip": "block.0.adaptor",
    **_FEED_FORWARD,
}
_UPSAMPLE = {"expand": "subpel_conv.0", "conv": "conv", "skip": "upsample.0"}


def _coder_names() -> Names:
    blocks: list[tuple[str, str, Mapping[str, str]]] = []
    for i in range(2):
        for ours, theirs in (("analysis", "enc.enc"), ("synthesis", "dec.dec")):
            blocks.append((f"{ours}.head.{i}", f"{theirs}_1.{i}", _GATED))
            blocks.append((f"{ours}.tail.{i}", f"{theirs}_2.{i}", _GATED))
        blocks.append((f"hyper.synthesis.{i}", f"hyper_dec.{i}", _UPSAMPLE))
        blocks.append((f"hyper.synthesis.{i + 3}", f"y_prior_fusion.{i}", _DEPTH_CONV))
    blocks.append(("hyper.analysis.0", "hyper_enc.0", _DEPTH_CONV))
    blocks.append(("hyper.synthesis.2", "hyper_dec.2", _DEPTH_CONV))
    blocks += [
        (f"context.adaptors.{k}", f"y_spatial_prior_adaptor_{k + 1}", _DEPTH_CONV) for k in range(STEPS - 1)
    ]
    blocks += [(f"context.shared.{i}", f"y_spatial_prior.{i}", _DEPTH_CONV) for i in range(DEPTH)]
    return {
        "analysis.scaler.scale": "q_enc",
        "synthesis.scaler.scale": "q_dec",
        "hyper.analysis.1": "hyper_enc.1",
        "hyper.analysis.3": "hyper_enc.3",
        "hyper.quantizer.embedding": "z_vq.embedding.weight",
        "context.reduction": "y_spatial_prior_reduction",
        **{
            f"{ours}.{inner}": f"{theirs}.{name}"
            for ours, theirs, names in blocks
            for inner, name in names.items()
        },
    }


def _predictor_names(prefix: str) -> Names:
    names = {"position": "position_emb", "embed": "feat_emb", "head": "idx_pred_layer"}
    layer = {
        "attention": "self_attn",
        "feed_forward.0": "linear1",
        "feed_forward.2": "linear2",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    for i in range(LAYERS):
        names.update({f"layers.{i}.{ours}": f"ft_layers.{i}.{theirs}" for ours, theirs in layer.items()})
    return {ours: f"{prefix}.{theirs}" for ours, theirs in names.items()}

"""Layouts of third-party checkpoints, as tables: `LAYOUTS` at the end of this module.

A layout lists the networks of glc that a file holds, the tensors from which their sizes are read, and the
third-party names of their tensors. A further kind of checkpoint is a further entry of `LAYOUTS`.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glc.codec.convert.vqgan_names import Names, by_level, flat
from glc.codec.weights.architecture import build
from glc.codec.weights.state import difference
from glc.models.context import STEPS

Shapes = Mapping[str, tuple[int, ...]]
Description = dict[str, Any]
"""Architecture of a network, for `glc.codec.weights.architecture.build`."""

INITIALIZED = "initialized"
"""Only in glc. A third-party codebook was trained, so it counts as initialised."""


class Size(NamedTuple):
    """A size of a network, and where a file's tensors show it."""

    default: int
    """Of the third-party file; used if no tensor shows the size."""
    axes: tuple[tuple[str, int], ...] = ()
    """Names of tensors and axes; the first one present is used."""
    convert: Callable[[int], int] = int
    """Maps the length of the axis to the size."""

    def read(self, shapes: Shapes) -> int:
        """Return the size from the shapes of a file's tensors."""
        for name, axis in self.axes:
            shape = shapes.get(name, ())
            if len(shape) > axis and shape[axis] > 0:
                return self.convert(shape[axis])
        return self.default


@dataclass(frozen=True)
class Layout:
    """How third-party files of one kind store the networks.

    Args:
        kind: its name on the command line.
        title: name of such a file in messages.
        signs: prefixes of names that identify this layout.
        sizes: of the networks.
        describe: maps the sizes, by name, to the descriptions of the networks.
        names: per network, the table of names, or a function that makes it from the network.
        count: reads further arguments of `describe` from the shapes of a file's tensors.
        optional: networks that a complete file may lack.
        spread: third-party names of tensors `[K, N, 1, 1]` that are `[K, N]` in glc.
        ignored: prefixes of names that do not belong to the networks.
    """

    kind: str
    title: str
    signs: tuple[str, ...]
    sizes: Mapping[str, Size]
    describe: Callable[..., dict[str, Description]]
    names: Mapping[str, Names | Callable[[Any], Names]]
    count: Callable[[Shapes], Mapping[str, Any]] = lambda shapes: {}
    optional: frozenset[str] = frozenset()
    spread: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    def fit(self, **sizes: Any) -> "FittedLayout":
        """Return the layout for given sizes, by default those of the third-party file.

        Raises:
            ArchitectureError, ValueError, ZeroDivisionError: a network cannot have such sizes.
        """
        defaults = {name: size.default for name, size in self.sizes.items()}
        return FittedLayout(self, self.describe(**{**defaults, **sizes}))

    def read(self, shapes: Shapes) -> "FittedLayout":
        """Return the layout for the sizes of a file's tensors; raises as `fit`."""
        sizes = {name: size.read(shapes) for name, size in self.sizes.items()}
        return self.fit(**{**sizes, **self.count(shapes)})


class Entry(NamedTuple):
    """One tensor of a third-party file."""

    official: str
    network: str
    name: str
    """In the network's state dict."""
    shape: tuple[int, ...]
    """In the third-party file; it may have additional axes of length 1."""
    ours: tuple[int, ...]


@dataclass(frozen=True)
class FittedLayout:
    """A layout at given sizes: every tensor, with both names.

    Args:
        table: the layout.
        descriptions: of the networks, by name.
    """

    table: Layout
    descriptions: Mapping[str, Description]
    entries: Mapping[str, Entry] = field(init=False, repr=False, compare=False)
    """By third-party name."""

    def __post_init__(self) -> None:
        entries = [entry for name in self.descriptions for entry in self._entries(name)]
        by_name = {entry.official: entry for entry in entries}
        assert len(by_name) == len(entries), "a name of the layout belongs to two tensors"
        object.__setattr__(self, "entries", by_name)

    def _entries(self, network: str) -> list[Entry]:
        with torch.device("meta"):
            module = build(self.descriptions[network])
        assert isinstance(module, nn.Module)
        names, found = self.table.names[network], []
        table = names(module) if callable(names) else names
        for name, tensor in module.state_dict().items():
            if name.rpartition(".")[2] != INITIALIZED:
                official, ours = _official(name, table), tuple(tensor.shape)
                shape = (*ours, 1, 1) if official in self.table.spread else ours
                found.append(Entry(official, network, name, shape, ours))
        return found

    def present(self, names: Iterable[str]) -> list[str]:
        """Return the networks that a file must hold completely: all but optional ones without any tensor."""
        touched = {self.entries[name].network for name in names if name in self.entries}
        return [name for name in self.descriptions if name not in self.table.optional or name in touched]

    def difference(self, shapes: Shapes) -> str:
        """Describe how a file with tensors of these shapes differs from the layout; empty if it fits."""
        present = set(self.present(shapes))
        expected = {name: e.shape for name, e in self.entries.items() if e.network in present}
        return difference(shapes, expected, ignored=self.table.ignored)

    def to_networks(
        self, tensors: Mapping[str, Tensor], networks: Iterable[str] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Return the state dicts of the networks, as views of the tensors of a file that fits the layout.

        Args:
            networks: names of the networks to return, which must be complete; by default those present.
        """
        chosen = self.present(tensors) if networks is None else networks
        states: dict[str, dict[str, Tensor]] = {name: {} for name in chosen}
        for official, entry in self.entries.items():
            if entry.network in states:
                states[entry.network][entry.name] = tensors[official].reshape(entry.ours)
        for state in states.values():
            codebooks = [name for name in state if name.rpartition(".")[2] == "embedding"]
            state.update(
                {name.removesuffix("embedding") + INITIALIZED: torch.tensor(True) for name in codebooks}
            )
        return states

    def from_networks(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of a third-party file for the given networks; the inverse of `to_networks`."""
        return {
            official: states[entry.network][entry.name].reshape(entry.shape)
            for official, entry in self.entries.items()
            if entry.network in states
        }


def _official(name: str, table: Names) -> str:
    """Return the third-party name of a tensor of glc; raises KeyError if it has none."""
    module, rest = name, ""
    while module not in table:
        module, _, leaf = module.rpartition(".")
        if not leaf or not module:
            raise KeyError(name)
        rest = f".{leaf}{rest}"
    return table[module] + rest


# Shared by several layouts -----------------------------------------------------------------------------


def _vqgan(
    latent_channels: int, codes: int, num_blocks: int = 2, decoder_blocks: int | None = None, **sizes: Any
) -> dict[str, Description]:
    """Return encoder, decoder and codebook; further sizes are arguments of `Encoder`."""
    both = {
        "latent_channels": latent_channels,
        "stem": 1,
        "norm": "group",
        "level_attention": True,
        "window": 32,
        **sizes,
        "multipliers": list(sizes["multipliers"]),
    }
    more = num_blocks + 1 if decoder_blocks is None else decoder_blocks
    return {
        "encoder": {"_target_": "glc.models.autoencoder.Encoder", **both, "num_blocks": num_blocks},
        "decoder": {"_target_": "glc.models.autoencoder.Decoder", **both, "num_blocks": more},
        "quantizer": {
            "_target_": "glc.models.quantizer.VectorQuantizer",
            "size": codes,
            "dim": latent_channels,
        },
    }


# The released GLC image model --------------------------------------------------------------------------

_DEPTH, _HEADS, _LAYERS = 3, 8, 9


def _glc(
    channels: int,
    latent_channels: int,
    codes: int,
    hyper_codes: int,
    width: int,
    rates: int,
    predictor_width: int,
    predictor_grid: int,
) -> dict[str, Description]:
    multipliers = (1, 1, 2, 2, 4)
    vqgan = _vqgan(
        latent_channels,
        codes,
        channels=channels,
        multipliers=multipliers,
        out_activation=True,
        projection=True,
    )
    coder = {
        "_target_": "glc.models.coder.TransformCoder",
        "latent_channels": latent_channels,
        "hyper": {
            "_target_": "glc.models.hyperprior.CategoricalHyperprior",
            "channels": width,
            "codebook_size": hyper_codes,
        },
        "context": {
            "_target_": "glc.models.context.QuadtreeContext",
            "channels": width,
            "depth": _DEPTH,
            "scale_bound": 1e-5,  # as in the released network's estimate of bits
        },
        "num_rates": rates,
    }
    predictor = {
        "_target_": "glc.models.code_predictor.CodePredictor",
        "latent_channels": latent_channels,
        "codebook_size": codes,
        "width": predictor_width,
        "heads": _HEADS,
        "layers": _LAYERS,
        "grid": predictor_grid,
    }
    quantizer = vqgan.pop("quantizer")
    return {
        **vqgan,
        "coder": coder,
        "quantizer": quantizer,
        "predictor": predictor,
        "pixel_predictor": predictor,
    }


def codec_description(descriptions: Mapping[str, Description]) -> Description:
    """Return the description of the codec, for a weights file."""
    parts = {name: dict(descriptions[name]) for name in ("encoder", "decoder", "coder")}
    return {"_target_": "glc.models.glc.GLC", **parts}


# Within a block: names of glc to third-party names. Both kinds end in the same feed-forward layer.
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
_BLOCKS: list[tuple[str, str, Names]] = [
    *((f"analysis.head.{i}", f"enc.enc_1.{i}", _GATED) for i in range(2)),
    *((f"analysis.tail.{i}", f"enc.enc_2.{i}", _GATED) for i in range(2)),
    *((f"synthesis.head.{i}", f"dec.dec_1.{i}", _GATED) for i in range(2)),
    *((f"synthesis.tail.{i}", f"dec.dec_2.{i}", _GATED) for i in range(2)),
    ("hyper.analysis.0", "hyper_enc.0", _DEPTH_CONV),
    *((f"hyper.synthesis.{i}", f"hyper_dec.{i}", _UPSAMPLE) for i in range(2)),
    ("hyper.synthesis.2", "hyper_dec.2", _DEPTH_CONV),
    *((f"hyper.synthesis.{i + 3}", f"y_prior_fusion.{i}", _DEPTH_CONV) for i in range(2)),
    *((f"context.adaptors.{k}", f"y_spatial_prior_adaptor_{k + 1}", _DEPTH_CONV) for k in range(STEPS - 1)),
    *((f"context.shared.{i}", f"y_spatial_prior.{i}", _DEPTH_CONV) for i in range(_DEPTH)),
]
_CODER = {
    "analysis.scaler.scale": "q_enc",
    "synthesis.scaler.scale": "q_dec",
    "hyper.analysis.1": "hyper_enc.1",
    "hyper.analysis.3": "hyper_enc.3",
    "hyper.quantizer.embedding": "z_vq.embedding.weight",
    "context.reduction": "y_spatial_prior_reduction",
    **{
        f"{ours}.{inner}": f"{theirs}.{name}"
        for ours, theirs, names in _BLOCKS
        for inner, name in names.items()
    },
}
_LAYER = {
    "attention": "self_attn",
    "feed_forward.0": "linear1",
    "feed_forward.2": "linear2",
    "norm1": "norm1",
    "norm2": "norm2",
}
_PREDICTOR = {
    "position": "position_emb",
    "embed": "feat_emb",
    "head": "idx_pred_layer",
    **{
        f"layers.{i}.{ours}": f"ft_layers.{i}.{theirs}"
        for i in range(_LAYERS)
        for ours, theirs in _LAYER.items()
    },
}


def _below(prefix: str, names: Names) -> Names:
    return {ours: f"{prefix}.{theirs}" for ours, theirs in names.items()}


# VQGANs ------------------------------------------------------------------------------------------------

_TAMING_RESIDUAL = re.compile(r"encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight")


def _taming(multipliers: tuple[int, ...] = (1, 1, 2, 2, 4), **sizes: Any) -> dict[str, Description]:
    return _vqgan(multipliers=multipliers, out_activation=True, projection=True, **sizes)


def _count_taming(shapes: Shapes) -> dict[str, Any]:
    """Count the levels and blocks of a VQGAN by the names of its tensors."""
    channels = LAYOUTS["taming"].sizes["channels"].read(shapes)
    widths: dict[int, int] = {}
    numbers: dict[int, set[int]] = {}
    for name, shape in shapes.items():
        if (match := _TAMING_RESIDUAL.fullmatch(name)) and shape:
            widths[int(match[1])] = shape[0]
            numbers.setdefault(int(match[1]), set()).add(int(match[2]))
    # Count names. A block number in a name could be arbitrarily large, so it must not give the count.
    count = max(map(len, numbers.values()), default=0)
    complete = widths and sorted(widths) == list(range(len(widths)))
    complete = complete and all(found == set(range(count)) for found in numbers.values())
    if not complete or any(width % channels for width in widths.values()):
        return {name: size.default for name, size in LAYOUTS["taming"].sizes.items()}
    last = len(widths) - 1
    return {
        "multipliers": tuple(widths[level] // channels for level in range(last + 1)),
        "num_blocks": count,
        "level_attention": any(name.startswith(f"encoder.down.{last}.attn.") for name in shapes),
    }


def _codeformer(**sizes: Any) -> dict[str, Description]:
    return _vqgan(
        decoder_blocks=2, multipliers=(1, 2, 2, 4, 4, 8), out_activation=False, projection=False, **sizes
    )


_EMBEDDING = "quantize.embedding.weight"
_POSITIONS = "code_pred_loss.position_emb"
LAYOUTS = {
    layout.kind: layout
    for layout in (
        Layout(
            kind="glc",
            title="GLC image model",
            signs=("vqgan.", "z_vq.", "y_spatial_prior"),
            sizes={
                "channels": Size(128, (("vqgan.encoder.blocks.0.weight", 0),)),
                "latent_channels": Size(256, (("vqgan.encoder.quant_conv.weight", 0),)),
                "codes": Size(16384, ((f"vqgan.{_EMBEDDING}", 0),)),
                "hyper_codes": Size(16384, (("z_vq.embedding.weight", 0),)),
                "width": Size(256, (("q_enc", 1), ("z_vq.embedding.weight", 1))),
                "rates": Size(4, (("q_enc", 0),)),
                "predictor_width": Size(512, ((_POSITIONS, 1),)),
                "predictor_grid": Size(16, ((_POSITIONS, 0),), math.isqrt),
            },
            describe=_glc,
            names={
                "encoder": flat("vqgan.encoder."),
                "decoder": flat("vqgan.generator."),
                "coder": _CODER,
                "quantizer": {"embedding": f"vqgan.{_EMBEDDING}"},
                "predictor": _below("code_pred_loss", _PREDICTOR),
                "pixel_predictor": _below("code_pred_pix_loss", _PREDICTOR),
            },
            optional=frozenset({"quantizer", "predictor", "pixel_predictor"}),
            spread=frozenset({"q_enc", "q_dec"}),
        ),
        Layout(
            kind="taming",  # f=16 with 16384 codewords, and others; latent diffusion's
            title="VQGAN of taming-transformers",
            signs=("encoder.down.", "decoder.up."),
            sizes={
                "channels": Size(128, (("encoder.conv_in.weight", 0),)),
                "latent_channels": Size(256, (("quant_conv.weight", 0),)),
                "codes": Size(16384, ((_EMBEDDING, 0),)),
            },
            describe=_taming,
            names={"encoder": by_level, "decoder": by_level, "quantizer": {"embedding": _EMBEDDING}},
            count=_count_taming,
            ignored=("loss.", "model_ema."),  # discriminator, LPIPS; EMA weights
        ),
        Layout(
            kind="codeformer",  # aligned faces of 512 pixels: f=32, 1024 codewords
            title="CodeFormer VQGAN",
            signs=("generator.blocks.", "encoder.blocks."),
            sizes={
                "channels": Size(64, (("encoder.blocks.0.weight", 0),)),
                "latent_channels": Size(256, ((_EMBEDDING, 1),)),
                "codes": Size(1024, ((_EMBEDDING, 0),)),
            },
            describe=_codeformer,
            names={
                "encoder": flat("encoder."),
                "decoder": flat("generator."),
                "quantizer": {"embedding": _EMBEDDING},
            },
        ),
    )
}
"""By kind, in the order of detection."""

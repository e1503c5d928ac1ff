"""The blocks of a VQGAN's encoder and decoder: ours by position, theirs by position or by level."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from glc.codec.convert.layout import Names

Kind = Literal[
    "in", "residual", "attention", "resample", "middle", "middle_attention", "norm", "out", "projection"
]

_Place = tuple[Kind, int, int]
"""Kind, level and position of a block."""


class Block(NamedTuple):
    """A block with parameters of our `Encoder` or `Decoder`."""

    number: int
    """Position in our `blocks`."""
    kind: Kind
    level: int = 0
    """0 is the picture's own resolution."""
    position: int = 0
    """Among the blocks of this kind at its level."""


@dataclass(frozen=True)
class Structure:
    """What shapes a VQGAN; the arguments are those of `glc.models.autoencoder.Encoder`.

    Args:
        decoder_blocks: residual blocks per level of the decoder; the encoder has `num_blocks`.
    """

    latent_channels: int
    channels: int
    multipliers: tuple[int, ...]
    num_blocks: int
    decoder_blocks: int
    out_activation: bool
    projection: bool
    level_attention: bool = True
    window: int | None = 32

    def encoder(self) -> dict[str, Any]:
        """Return the description of E."""
        return self._description("Encoder", self.num_blocks)

    def decoder(self) -> dict[str, Any]:
        """Return the description of D."""
        return self._description("Decoder", self.decoder_blocks)

    def _description(self, name: str, num_blocks: int) -> dict[str, Any]:
        return {
            "_target_": f"glc.models.autoencoder.{name}",
            "latent_channels": self.latent_channels,
            "channels": self.channels,
            "multipliers": list(self.multipliers),
            "num_blocks": num_blocks,
            "stem": 1,
            "norm": "group",
            "level_attention": self.level_attention,
            "window": self.window,
            "out_activation": self.out_activation,
            "projection": self.projection,
        }

    def encoder_blocks(self) -> Iterator[Block]:
        """Yield the blocks of E, from the picture to the latent."""
        order: list[_Place] = [("in", 0, 0)]
        last = len(self.multipliers) - 1
        for level in range(last + 1):
            order += self._level(level, self.num_blocks)
            if level < last:
                order.append(("resample", level, 0))
        order += _MIDDLE
        yield from self._numbered([*order, *self._end()])

    def decoder_blocks_in_order(self) -> Iterator[Block]:
        """Yield the blocks of D, from the latent to the picture."""
        order: list[_Place] = [("projection", 0, 0)] if self.projection else []
        order += [("in", 0, 0), *_MIDDLE]
        for level in reversed(range(len(self.multipliers))):
            order += self._level(level, self.decoder_blocks)
            if level > 0:
                order.append(("resample", level, 0))
        yield from self._numbered([*order, ("norm", 0, 0), ("out", 0, 0)])

    def _level(self, level: int, count: int) -> list[_Place]:
        attended = self.level_attention and level == len(self.multipliers) - 1
        kinds: tuple[Kind, ...] = ("residual", "attention") if attended else ("residual",)
        return [(kind, level, position) for position in range(count) for kind in kinds]

    def _end(self) -> list[_Place]:
        end: list[_Place] = [("norm", 0, 0), ("out", 0, 0)]
        return [*end, ("projection", 0, 0)] if self.projection else end

    def _numbered(self, order: list[_Place]) -> Iterator[Block]:
        number = 0
        for kind, level, position in order:
            if kind == "out" and self.out_activation:
                number += 1  # the swish before it is a block of its own, without parameters
            yield Block(number, kind, level, position)
            number += 1


_MIDDLE: list[_Place] = [("middle", 0, 1), ("middle_attention", 0, 0), ("middle", 0, 2)]

_RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"}
_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"}
_RESAMPLE = {"conv": "conv"}


def _inner(kind: Kind, skip: str) -> Mapping[str, str]:
    """Return our names within a block and theirs; empty for a single layer."""
    if kind in ("residual", "middle"):
        return {**_RESIDUAL, "skip": skip}
    if kind in ("attention", "middle_attention"):
        return _ATTENTION
    return _RESAMPLE if kind == "resample" else {}


def _named(block: Block, theirs: str, skip: str) -> Iterator[tuple[str, str]]:
    inner = _inner(block.kind, skip)
    for ours, name in inner.items():
        yield f"blocks.{block.number}.{ours}", f"{theirs}.{name}"
    if not inner:
        yield f"blocks.{block.number}", theirs


def flat_encoder_names(structure: Structure, prefix: str) -> Names:
    """Return the names of E where they number all blocks as we do, as CodeFormer and GLC do.

    Args:
        structure: the VQGAN's.
        prefix: of the encoder, with its dot.
    """
    names: dict[str, str] = {}
    for block in structure.encoder_blocks():
        theirs = "quant_conv" if block.kind == "projection" else f"blocks.{block.number}"
        names.update(_named(block, prefix + theirs, "conv_out"))
    return names


def flat_decoder_names(structure: Structure, prefix: str) -> Names:
    """Return the names of D; see `flat_encoder_names`. Our projection is their first block's predecessor."""
    names: dict[str, str] = {}
    before = int(structure.projection)
    for block in structure.decoder_blocks_in_order():
        projection = block.kind == "projection"
        theirs = "post_quant_conv" if projection else f"blocks.{block.number - before}"
        names.update(_named(block, prefix + theirs, "conv_out"))
    return names


def level_encoder_names(structure: Structure) -> Names:
    """Return the names of E where they sort blocks by level, as taming-transformers does."""
    names: dict[str, str] = {}
    for block in structure.encoder_blocks():
        names.update(_named(block, _by_level(block, "encoder", "down", "downsample"), "nin_shortcut"))
    return names


def level_decoder_names(structure: Structure) -> Names:
    """Return the names of D; see `level_encoder_names`."""
    names: dict[str, str] = {}
    for block in structure.decoder_blocks_in_order():
        names.update(_named(block, _by_level(block, "decoder", "up", "upsample"), "nin_shortcut"))
    return names


def _by_level(block: Block, network: str, side: str, resample: str) -> str:
    level = f"{network}.{side}.{block.level}"
    return {
        "in": f"{network}.conv_in",
        "residual": f"{level}.block.{block.position}",
        "attention": f"{level}.attn.{block.position}",
        "resample": f"{level}.{resample}",
        "middle": f"{network}.mid.block_{block.position}",
        "middle_attention": f"{network}.mid.attn_1",
        "norm": f"{network}.norm_out",
        "out": f"{network}.conv_out",
        "projection": "quant_conv" if network == "encoder" else "post_quant_conv",
    }[block.kind]


def codebook(size: int, dim: int) -> dict[str, Any]:
    """Return the description of C."""
    return {"_target_": "glc.models.quantizer.VectorQuantizer", "size": size, "dim": dim}

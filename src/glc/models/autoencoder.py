"""The latent autoencoder: a VQGAN's encoder E, decoder D and codebook C (paper sections 3.2, 8.1)."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glc.layers.blocks import Downsample, ResidualBlock, Upsample, WindowAttention, make_norm
from glc.models.quantizer import FiniteScalarQuantizer, Quantized, VectorQuantizer

_QUAD = 12
"""Values of 2 x 2 pixels."""


class _Pipeline(nn.Module):
    """Blocks applied in turn, recomputed in the backward pass when `checkpointing` is set."""

    def __init__(self, blocks: Sequence[nn.Module], checkpointing: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.checkpointing = checkpointing

    def run(self, x: Tensor, blocks: Iterable[nn.Module]) -> Tensor:
        """Apply some of the blocks."""
        for block in blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class Encoder(_Pipeline):
    """E: image to latent.

    ```
    x [B, 3, H, W] in [-1, 1]
      -> space-to-depth (stem) -> 3x3
      -> per level: `num_blocks` residual blocks, then downsample by 2 (all but the last level)
         (attention after each block of the last level)
      -> residual, attention, residual -> norm -> swish -> 3x3 -> 1x1 (-> tanh)
    l [B, latent_channels, H / f, W / f],   f = stem * 2 ** (levels - 1)
    ```

    Args:
        latent_channels: width of the latent.
        channels: width at the first level.
        multipliers: width of each level, in multiples of `channels`.
        num_blocks: residual blocks per level.
        stem: factor of the space-to-depth rearrangement before the first convolution; 1 for none. A stem
            of 4 makes the network 16 times faster at equal widths.
        norm: kind of normalisation, see `glc.layers.blocks.make_norm`.
        level_attention: attention after each residual block of the last level, as in VQGAN.
        window: side of an attention window at evaluation, in latent positions; None for global attention.
        out_activation: swish before the last convolution (taming's VQGAN has it, CodeFormer's does not).
        projection: 1x1 convolution after the last convolution (likewise).
        checkpointing: gradient checkpointing: recompute activations in the backward pass.
        bounded: tanh at the end, as a `FiniteScalarQuantizer` needs.
    """

    def __init__(
        self,
        latent_channels: int = 256,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        stem: int = 1,
        norm: str = "group",
        level_attention: bool = True,
        window: int | None = 32,
        out_activation: bool = True,
        projection: bool = True,
        checkpointing: bool = False,
        bounded: bool = False,
    ) -> None:
        width = channels
        blocks: list[nn.Module] = []
        if stem > 1:
            blocks.append(nn.PixelUnshuffle(stem))
        blocks.append(nn.Conv2d(3 * stem**2, width, 3, padding=1))
        for level, multiplier in enumerate(multipliers):
            last = level == len(multipliers) - 1
            for _ in range(num_blocks):
                blocks.append(ResidualBlock(width, channels * multiplier, norm))
                width = channels * multiplier
                if last and level_attention:
                    blocks.append(WindowAttention(width, window, norm))
            if not last:
                blocks.append(Downsample(width))
        blocks += [
            ResidualBlock(width, width, norm),
            WindowAttention(width, window, norm),
            ResidualBlock(width, width, norm),
            make_norm(norm, width),
        ]
        if out_activation:
            blocks.append(nn.SiLU())
        blocks.append(nn.Conv2d(width, latent_channels, 3, padding=1))
        if projection:
            blocks.append(nn.Conv2d(latent_channels, latent_channels, 1))
        super().__init__(blocks, checkpointing)
        self.latent_channels = latent_channels
        self.downsampling = stem * 2 ** (len(multipliers) - 1)
        """f: pixels per latent position along a side."""
        self.bounded = bounded

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, 3, H, W]` in [-1, 1] to a latent `[B, latent_channels, H / f, W / f]`."""
        latent = self.run(x, self.blocks).float()
        return latent.tanh() if self.bounded else latent


def _chain(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


class Decoder(_Pipeline):
    """D: latent to image, the mirror of `Encoder` (its other arguments are explained there).

    ```
    l [B, latent_channels, H / f, W / f]
      -> 1x1 -> 3x3 -> residual, attention, residual
      -> per level, from the last: `num_blocks` residual blocks, then upsample by 2 (all but the first level)
      -> norm -> swish -> 3x3 -> depth-to-space (stem)
    x_hat [B, 3, H, W], nominally in [-1, 1], not clamped
    ```

    A stem of 4 renders each square of 4 x 4 pixels independently. Refinement blocks work across squares, at
    half the image's size: with `fine_blocks` the last line is

    ```
      -> norm -> swish -> 3x3 -> depth-to-space (stem / 2) -> residual blocks -> 3x3 -> depth-to-space (2)
    ```

    Args:
        fine_blocks: number of refinement blocks (residual blocks at half the image's size).
        fine_channels: their width, at least 12.

    Raises:
        ValueError: refinement blocks with an odd stem or fewer than 12 channels.
    """

    def __init__(
        self,
        latent_channels: int = 256,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 3,
        stem: int = 1,
        norm: str = "group",
        level_attention: bool = True,
        window: int | None = 32,
        out_activation: bool = True,
        projection: bool = True,
        checkpointing: bool = False,
        fine_blocks: int = 0,
        fine_channels: int = 48,
    ) -> None:
        if fine_blocks and (stem % 2 or fine_channels < _QUAD):
            raise ValueError(
                f"fine_blocks={fine_blocks}: needs an even stem and fine_channels of at least {_QUAD}, "
                f"got {stem} and {fine_channels}"
            )
        width = channels * multipliers[-1]
        blocks: list[nn.Module] = []
        if projection:
            blocks.append(nn.Conv2d(latent_channels, latent_channels, 1))
        blocks += [
            nn.Conv2d(latent_channels, width, 3, padding=1),
            ResidualBlock(width, width, norm),
            WindowAttention(width, window, norm),
            ResidualBlock(width, width, norm),
        ]
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(num_blocks):
                blocks.append(ResidualBlock(width, channels * multiplier, norm))
                width = channels * multiplier
                if level == len(multipliers) - 1 and level_attention:
                    blocks.append(WindowAttention(width, window, norm))
            if level > 0:
                blocks.append(Upsample(width))
        blocks.append(make_norm(norm, width))
        if out_activation:
            blocks.append(nn.SiLU())
        head, shuffle = len(blocks), stem
        if fine_blocks:
            blocks.append(nn.Conv2d(width, fine_channels * (stem // 2) ** 2, 3, padding=1))
            if stem > 2:
                blocks.append(nn.PixelShuffle(stem // 2))
            blocks += [ResidualBlock(fine_channels, fine_channels, norm) for _ in range(fine_blocks)]
            width, shuffle = fine_channels, 2
        blocks.append(nn.Conv2d(width, 3 * shuffle**2, 3, padding=1))
        if shuffle > 1:
            blocks.append(nn.PixelShuffle(shuffle))
        super().__init__(blocks, checkpointing)
        self.latent_channels = latent_channels
        self.downsampling = stem * 2 ** (len(multipliers) - 1)
        self.fine_blocks = fine_blocks
        self._head = head
        """Index of the first block that maps features to pixels."""
        self._run_tail = _chain

    @property
    def tail(self) -> nn.ModuleList:
        """The last convolution, and the depth-to-space after it if there is one."""
        return self.blocks[-2 if isinstance(self.blocks[-1], nn.PixelShuffle) else -1 :]

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, at which the adversarial loss is balanced."""
        weight = self.tail[0].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @torch.no_grad()
    def inflate(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of this decoder with which it computes the same as one without refinement blocks.

        Weight inflation (Net2Net, Chen et al. 2016): the image becomes the first channels of the refinement
        blocks, which start as identities.

        Args:
            weights: `state_dict()` of the decoder without refinement blocks.

        Raises:
            KeyError, RuntimeError: they belong to another decoder.
        """
        made = copy.deepcopy(self)
        body = {name: t for name, t in weights.items() if int(name.split(".")[1]) < self._head}
        made.load_state_dict(body, strict=False)
        layers: list[Any] = [b for b in made.blocks[self._head :] if not isinstance(b, nn.PixelShuffle)]
        first, *fine, last = layers
        half = round((first.out_channels / last.in_channels) ** 0.5)
        for kind, own in first.named_parameters():
            # colour, row, column in the stem -> colour, position in a 2 x 2 square, position of the square
            given = weights[f"blocks.{self._head}.{kind}"].unflatten(0, (3, half, 2, half, 2))
            own[: _QUAD * half**2] = given.movedim((2, 4), (1, 2)).flatten(0, 4)
        for block in fine:
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
        last.bias.zero_()
        nn.init.dirac_(last.weight)
        return made.state_dict()

    def forward(self, latent: Tensor) -> Tensor:
        """Map `[B, latent_channels, h, w]` to `[B, 3, f h, f w]`, nominally in [-1, 1]."""
        tail = self.tail
        return self._run_tail(tail, self.run(latent, self.blocks[: -len(tail)])).float()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but the last layer.

        The adversarial loss is differentiated with respect to the last layer only. Inside a compiled graph
        that would need a backward pass of the complete decoder, and free the buffers of the next one.
        """
        self._run_tail = torch.compiler.disable(_chain)
        super().compile(*args, **kwargs)


class AutoencoderOutput(NamedTuple):
    """Output of `VQAutoencoder` for x `[B, 3, H, W]`."""

    x_hat: Tensor
    """`[B, 3, H, W]`: the reconstruction, nominally in [-1, 1]."""
    latent: Tensor
    """l, `[B, C, H / f, W / f]`."""
    quantized: Quantized
    """Codewords and indices of the latent."""


class VQAutoencoder(nn.Module):
    """The generative VQ-VAE of stage I.

    ```
    x --E--> l --C--> codewords --D--> x_hat
    ```

    Args:
        encoder: E.
        decoder: D.
        quantizer: the codebook C.

    Raises:
        ValueError: the networks disagree on the latent's width, range or f.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, quantizer: VectorQuantizer) -> None:
        super().__init__()
        widths = (encoder.latent_channels, decoder.latent_channels, quantizer.dim)
        if len(set(widths)) != 1:
            raise ValueError(
                f"encoder, decoder and quantizer need latents of equal width, got {widths} channels"
            )
        if encoder.downsampling != decoder.downsampling:
            raise ValueError(
                f"encoder downsampling {encoder.downsampling} differs from decoder downsampling "
                f"{decoder.downsampling}"
            )
        if isinstance(quantizer, FiniteScalarQuantizer) and not (
            quantizer.dim == len(quantizer.levels) and getattr(encoder, "bounded", True)
        ):
            raise ValueError(
                "finite scalar quantisation needs a bounded encoder and a latent channel for each count of "
                f"levels: set model.encoder.bounded=true and model.latent_channels={len(quantizer.levels)}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer

    def forward(self, x: Tensor, unquantized: Tensor | None = None) -> AutoencoderOutput:
        """Reconstruct x `[B, 3, H, W]` in [-1, 1], sides multiples of f, from its codewords.

        Args:
            x: the images.
            unquantized: `[B]`, bool: images that bypass the quantizer; none by default.
        """
        latent = self.encoder(x)
        quantized = self.quantizer(latent)
        given = quantized.quantized
        if unquantized is not None:
            given = torch.where(unquantized[:, None, None, None], latent, given)
        return AutoencoderOutput(self.decoder(given), latent, quantized)

"""Generative latent coding: `.glc` files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open

from glc.codec.codec import load
from glc.codec.weights.catalog import find
from glc.evaluation.codecs.base import ImageCodec
from glc.latent_optimization import LatentOptimizer


class LatentCodec(ImageCodec):
    """Generative latent coding with a weights file.

    Args:
        model: a weights file, or a name that `glc models` lists.
        device: device of the networks.
        qualities: 0 to 100; by default the model's trained rate points.
        target_bpp: bits per pixel instead.
        optimize_latent: latent optimisation steps per image, see `glc.latent_optimization`; 0 for none.
        weights_dir: folder of LPIPS' weights for latent optimisation; None for torch hub's cache.

    Raises:
        WeightsError: the model is unknown, or its file cannot be used.
        WeightsUnavailable: LPIPS' weights were not found.
        ValueError: the device does not exist, or a quality is out of range.
    """

    kind = "glc"
    suffix = ".glc"
    ladder = (0.0, 100.0)

    def __init__(
        self,
        model: str | Path,
        device: str = "cpu",
        qualities: Sequence[float] | None = None,
        target_bpp: Sequence[float] | None = None,
        optimize_latent: int = 0,
        weights_dir: str | Path | None = None,
    ) -> None:
        self.codec = load(model, device)
        self._steps = optimize_latent
        self._optimizer = (
            LatentOptimizer(optimize_latent, weights_dir=weights_dir) if optimize_latent else None
        )
        file = find(model)
        self.name = f"{file.stem}-optimized{optimize_latent}" if optimize_latent else file.stem
        with safe_open(file, framework="numpy") as opened:
            self._encoder = (opened.metadata() or {}).get("encoder_fingerprint")
        self.fingerprint = self.codec.weights.fingerprint
        stride = self.codec.model.stride
        self.conversion = f"8-bit RGB, padded to multiples of {stride} by replication, cropped when decoded"
        if not qualities and not target_bpp:
            rates = self.codec.model.num_rates
            qualities = [round(100 * rate / max(1, rates - 1), 2) for rate in range(rates)]
        super().__init__(qualities, target_bpp)

    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        """Return the `.glc` file of an image."""
        return self.codec.compress(image, quality, optimize_latent=self._optimizer)

    def _search(self, image: Image.Image, target_bpp: float) -> bytes:
        # The codec encodes the latent once per search.
        return self.codec.compress(image, target_bpp=target_bpp, optimize_latent=self._optimizer)

    def decode(self, data: bytes) -> Image.Image:
        """Decode a `.glc` file.

        Raises:
            BitstreamError: it cannot be decoded.
        """
        return self.codec.decompress(data)

    def versions(self) -> Mapping[str, str]:
        """Return the version of torch."""
        return {"torch": torch.__version__}

    def options(self) -> Mapping[str, Any]:
        """Return the settings that change files or decoded images but not the fingerprint.

        These are the encoder, latent optimisation, and the precision of E and D (`auto` varies by device).
        """
        precision = self.codec.networks.precision
        return {
            "precision": [str(precision.encoder), str(precision.decoder)],
            **({"optimize_latent": self._steps} if self._steps else {}),
            "encoder_fingerprint": self._encoder,
            "rates": [dict(rate) for rate in self.codec.weights.rates],
        }

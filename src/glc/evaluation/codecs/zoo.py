"""Pretrained models of CompressAI's zoo, if CompressAI and their weights are available."""

import importlib.metadata
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image

from glc.data.images import crop, pad, stack_images, to_image
from glc.evaluation.codecs.base import CodecUnavailable, ImageCodec

_HEADER = struct.Struct("<BHHHHB")  # quality, width, height, height and width of the hyper-latent, strings
_LENGTH = struct.Struct("<I")


class ZooCodec(ImageCodec):
    """A pretrained model of CompressAI.

    CompressAI returns entropy-coded strings but no file. The file here has a header of 10 bytes, then each
    string after its length in 4 bytes. All bytes count.

    Args:
        architecture: a name in `compressai.zoo.image_models`.
        metric: training objective of the model, `mse` or `ms-ssim`.
        device: device of the model.
        multiple: sides are padded to multiples of it.
        highest: largest quality of the model.
        qualities: the zoo's, 1 to 6 or 8.
        target_bpp: bits per pixel instead.

    Raises:
        CodecUnavailable: CompressAI is not installed, or the weights are not available.
        ValueError: the architecture or a quality is unknown.
    """

    kind = "compressai"
    suffix = ".strings"

    def __init__(
        self,
        architecture: str = "cheng2020-anchor",
        metric: str = "mse",
        device: str = "cpu",
        multiple: int = 64,
        highest: int = 6,
        qualities: Sequence[float] | None = None,
        target_bpp: Sequence[float] | None = None,
    ) -> None:
        self.architecture, self.metric, self.device, self.multiple = architecture, metric, device, multiple
        self.name = f"{architecture} ({metric})"
        self.ladder = range(1, highest + 1)
        self.conversion = f"RGB, padded to multiples of {multiple} by replication, cropped when decoded"
        try:
            from compressai.zoo import image_models
        except ImportError as error:
            raise CodecUnavailable("compressai is not installed; run pip install compressai") from error
        if architecture not in image_models:
            raise ValueError(
                f"architecture={architecture!r} is unknown; choose one of {', '.join(image_models)}"
            )
        self._make = image_models[architecture]
        self._model = lru_cache(maxsize=None)(self._load)
        super().__init__(qualities, target_bpp)
        for setting in self.settings:
            if setting.quality is not None:
                self._model(int(setting.quality))

    def _load(self, quality: int) -> Any:
        try:
            model = self._make(quality=quality, metric=self.metric, pretrained=True)
        except OSError as error:
            raise CodecUnavailable(
                f"{self.name}: the weights of quality {quality} are not available ({error}); connect to the "
                f"internet, or put them into {torch.hub.get_dir()}/checkpoints"
            ) from error
        model = model.eval().to(self.device)
        model.update()
        return model

    @torch.inference_mode()
    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        """Return the header and the strings of an image."""
        x = (stack_images([image]) + 1) / 2
        found = self._model(int(quality)).compress(pad(x, self.multiple).to(self.device))
        strings = [string for (string,) in found["strings"]]
        header = _HEADER.pack(int(quality), image.width, image.height, *found["shape"], len(strings))
        return header + b"".join(_LENGTH.pack(len(string)) + string for string in strings)

    @torch.inference_mode()
    def decode(self, data: bytes) -> Image.Image:
        """Decode a file.

        Raises:
            ValueError: it is truncated.
        """
        try:
            quality, width, height, rows, columns, count = _HEADER.unpack_from(data)
            strings, offset = [], _HEADER.size
            for _ in range(count):
                (length,) = _LENGTH.unpack_from(data, offset)
                offset += _LENGTH.size + length
                strings.append([data[offset - length : offset]])
        except struct.error as error:
            raise ValueError(f"{self.name}: the file is truncated") from error
        x_hat = self._model(quality).decompress(strings, (rows, columns))["x_hat"].clamp(0, 1)
        return to_image(crop(x_hat[0] * 2 - 1, height, width))

    def versions(self) -> Mapping[str, str]:
        """Return the versions of CompressAI and torch."""
        return {"compressai": importlib.metadata.version("compressai"), "torch": torch.__version__}

    def options(self) -> Mapping[str, Any]:
        """Return architecture and training objective of the model."""
        return {"architecture": self.architecture, "metric": self.metric}

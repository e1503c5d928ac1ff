"""Degradations to train restoration encoders with: noise, blur, JPEG, downsampling, holes.

Each is a module that maps x `[B, 3, H, W]` in [-1, 1] to degraded images of the same shape, rounded to
8-bit levels. A parameter is one number, or a pair `[low, high]` from which a value is sampled for each
image. All random numbers come from `generator`, else from torch's global generator on the CPU, so that the
degradation does not depend on the device.
"""

import io
import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Generator, Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from glc.data.images import from_uint8, stack_images, to_image, to_uint8

Range = float | Sequence[float]

HOLE = float(from_uint8(torch.tensor(128)))
"""Value of pixels in holes: mid grey, level 128 of 255 in all channels."""


def _range(key: str, value: Range, low: float, high: float) -> tuple[float, float]:
    """Return a parameter as a pair.

    Raises:
        ValueError: it is not a number or pair within the limits.
    """
    pair = (value, value) if isinstance(value, int | float) else tuple(value)
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(f"{key} must be a number or [low, high] within [{low:g}, {high:g}], got {value}")
    return float(pair[0]), float(pair[1])


def _sample(pair: tuple[float, float], generator: Generator | None) -> float:
    return pair[0] + (pair[1] - pair[0]) * torch.rand((), generator=generator).item()


class Degradation(nn.Module):
    """Base class: `degrade` handles one image, `forward` a batch."""

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Degrade x `[B, 3, H, W]` in [-1, 1], each image with its own random parameters.

        Args:
            x: the images, on any device.
            generator: on the CPU; None for torch's global one.
        """
        done = torch.stack([self.degrade(image, generator) for image in x])
        return from_uint8(to_uint8(done)).to(x.dtype)

    @abstractmethod
    def degrade(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Degrade an image `[3, H, W]` in [-1, 1]; the result may leave that range."""


class GaussianNoise(Degradation):
    """White Gaussian noise.

    Args:
        sigma: standard deviation in levels of 255, within [0, 255].
    """

    def __init__(self, sigma: Range = 20.0) -> None:
        super().__init__()
        self.sigma = _range("degradation.sigma", sigma, 0, 255)

    def degrade(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Add noise to an image."""
        sigma = _sample(self.sigma, generator) / 127.5
        return x + sigma * torch.randn(x.shape, generator=generator).to(x.device)


class Blur(Degradation):
    """A Gaussian blur.

    Args:
        sigma: standard deviation in pixels, within [0.1, 20].
    """

    def __init__(self, sigma: Range = (1.0, 3.0)) -> None:
        super().__init__()
        self.sigma = _range("degradation.sigma", sigma, 0.1, 20)

    def degrade(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Blur an image with reflected edges; the kernel is limited by the image size."""
        sigma = _sample(self.sigma, generator)
        radius = min(math.ceil(3 * sigma), min(x.shape[-2:]) - 1)
        return gaussian_blur(x, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])


class JPEG(Degradation):
    """JPEG artefacts, with 4:2:0 chroma subsampling.

    Args:
        quality: Pillow's scale, within [1, 95].
    """

    def __init__(self, quality: Range = (5.0, 30.0)) -> None:
        super().__init__()
        self.quality = _range("degradation.quality", quality, 1, 95)

    def degrade(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Write an image as JPEG and read it back, on the CPU."""
        stream = io.BytesIO()
        to_image(x.float().cpu()).save(stream, "JPEG", quality=round(_sample(self.quality, generator)))
        return stack_images([Image.open(stream)])[0].to(x)


class Downsample(Degradation):
    """Bicubic downsampling with anti-aliasing, then bicubic upsampling to the original size.

    Args:
        factor: the sides are divided by it, within [1, 16].
    """

    def __init__(self, factor: Range = (2.0, 4.0)) -> None:
        super().__init__()
        self.factor = _range("degradation.factor", factor, 1, 16)

    def degrade(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Shrink an image and enlarge it again."""
        factor = _sample(self.factor, generator)
        height, width = x.shape[-2:]
        small = (max(1, round(height / factor)), max(1, round(width / factor)))
        shrunk = F.interpolate(x[None].float(), small, mode="bicubic", antialias=True)
        return F.interpolate(shrunk, (height, width), mode="bicubic")[0].to(x.dtype)


class Mask(Degradation):
    """Holes filled with mid grey: brush strokes and boxes, until they cover a share of the image.

    The encoder gets the filled image and no mask, so an image with holes is an ordinary image file.

    Args:
        share: minimum share of the image to cover, within [0, 0.9]; the last stroke or box may exceed it.
        boxes: probability that a hole is a box instead of a stroke, within [0, 1].
        canvas: side in pixels of the masks that those of smaller crops are cut from. Holes then have the size
            that they have in complete images, and a crop may have none. 1: sample a mask for each crop.
    """

    def __init__(self, share: Range = (0.05, 0.25), boxes: float = 0.3, canvas: int = 512) -> None:
        super().__init__()
        self.canvas = int(_range("degradation.canvas", canvas, 1, 8192)[0])
        self.share = _range("degradation.share", share, 0, 0.9)
        self.boxes = _range("degradation.boxes", boxes, 0, 1)[0]

    def degrade(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Cut holes into an image and fill them."""
        return x.masked_fill(self.sample_mask(x.shape[-2], x.shape[-1], generator).to(x.device), HOLE)

    def sample_mask(self, height: int, width: int, generator: Generator | None = None) -> Tensor:
        """Return a random mask `[height, width]`, bool, true where the image is lost."""
        rows, columns = max(height, self.canvas), max(width, self.canvas)
        lost = self._canvas_mask(rows, columns, generator)
        if (rows, columns) == (height, width):
            return lost
        top = round(_sample((0, rows - height), generator))
        left = round(_sample((0, columns - width), generator))
        return lost[top : top + height, left : left + width]

    def _canvas_mask(self, height: int, width: int, generator: Generator | None) -> Tensor:
        wanted = _sample(self.share, generator) * height * width
        canvas = Image.new("1", (width, height))
        pen = ImageDraw.Draw(canvas)
        lost = torch.zeros(height, width, dtype=torch.bool)
        while lost.sum() < wanted:
            if _sample((0, 1), generator) < self.boxes:
                self._box(pen, height, width, generator)
            else:
                self._stroke(pen, height, width, generator)
            values = torch.frombuffer(bytearray(canvas.convert("L").tobytes()), dtype=torch.uint8)
            lost = values.view(height, width) > 0
        return lost

    @staticmethod
    def _box(pen: ImageDraw.ImageDraw, height: int, width: int, generator: Generator | None) -> None:
        left, top = (_sample((-0.1, 0.9), generator) for _ in range(2))
        across, down = (_sample((0.08, 0.3), generator) for _ in range(2))
        pen.rectangle((left * width, top * height, (left + across) * width, (top + down) * height), fill=1)

    @staticmethod
    def _stroke(pen: ImageDraw.ImageDraw, height: int, width: int, generator: Generator | None) -> None:
        side = min(height, width)
        thick = max(1, round(_sample((0.02, 0.06), generator) * side))
        x, y = _sample((0, width), generator), _sample((0, height), generator)
        turn = _sample((0, 2 * math.pi), generator)
        points = [(x, y)]
        for _ in range(2 + int(_sample((0, 5), generator))):
            turn += _sample((-1, 1), generator)
            length = _sample((0.08, 0.25), generator) * side
            x, y = x + length * math.cos(turn), y + length * math.sin(turn)
            points.append((x, y))
        pen.line(points, fill=1, width=thick, joint="curve")


class Mixture(Degradation):
    """One of several degradations, chosen at random for each image.

    Args:
        parts: name to degradation; None is omitted.
        weights: name to relative probability; 1 where a name is missing.

    Raises:
        ValueError: there are no parts with a positive weight, or a weight is negative or has an unknown name.
    """

    def __init__(self, parts: dict[str, Degradation | None], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
        given = dict(weights or {})
        unknown = sorted(given.keys() - parts.keys())
        if unknown:
            raise ValueError(f"degradation.weights: unknown name {', '.join(unknown)}")
        shares = [float(given.get(name, 1.0)) for name in self.parts]
        if not shares or min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(
                f"degradation.weights: at least one must be positive and none negative, got {given}"
            )
        self.shares = torch.tensor(shares)

    def degrade(self, x: Tensor, generator: Generator | None) -> Tensor:
        """Apply one of the parts to an image."""
        chosen = int(torch.multinomial(self.shares, 1, generator=generator))
        part = list(self.parts.values())[chosen]
        assert isinstance(part, Degradation)
        return part.degrade(x, generator)

"""What the page does, without the page: compress, open, restore, fill holes, draw in a style."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageFilter

from glc.codec.bitstream import Header, unpack
from glc.codec.codec import Codec, TargetWarning
from glc.codec.load import load
from glc.codec.weights.catalog import DEFAULT_MODEL, catalog
from glc.codec.weights.variants import decoders, encoders
from glc.data.images import open_image, read_rgb, stack_images
from glc.errors import ImageError, WeightsError, WrongWeightsError

OWN = "the model's own"
"""Stands for the model's own encoder or decoder among choices."""
GREY = 128
"""Level that holes are filled with: what an inpainting encoder takes for a hole."""
CANVAS = 1_000_000
"""Pixels of an image to paint on; more would only make the page slow."""
KEPT = 4
"""Codecs that stay loaded, the last ones used."""


@dataclass(frozen=True)
class Coded:
    """An image that went through a file."""

    original: Image.Image
    image: Image.Image
    file: Path
    """The `.glc` file."""
    figures: dict[str, str]
    """What to tell of it, by name."""
    coarse: Image.Image | None = None
    """What the hyper code alone carries, where the model has one."""
    note: str = ""


@dataclass
class Studio:
    """Models, limits, and what can be done with them; safe to use from several threads.

    Args:
        model: file or name of the model that is chosen first; None for the default one.
        device: where the networks run.
        max_bytes: of a file that is read.
        max_pixels: of an image.
        weights_dir: folder with LPIPS' weights; None for torch hub's cache. Nothing is downloaded.

    Raises:
        WeightsError: when there is no model.
    """

    model: str | None = None
    device: str = "auto"
    max_bytes: int = 32_000_000
    max_pixels: int = 24_000_000
    weights_dir: Path | None = None
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)
    _loaded: dict[tuple[str, str | None, str | None], Codec] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.models = {name: str(file) for name, file in catalog().items()}
        first = self.model
        if first is not None and first not in self.models:
            file = Path(first)
            known = self.models.get(file.stem)
            # Another file called as one of the models is has its whole name, so that both can be chosen.
            first = file.stem if known is None or Path(known).resolve() == file.resolve() else file.name
            self.models = {**self.models, first: str(self.model)}
        if not self.models:
            raise WeightsError("no model comes with this version of glc: give a weights file with --model")
        if first is None:
            first = DEFAULT_MODEL if DEFAULT_MODEL in self.models else next(iter(self.models))
        self.first = first
        self.codec(self.first)
        self.folder = tempfile.TemporaryDirectory(prefix="glc-page-")

    def codec(self, model: str, encoder: str | None = None, decoder: str | None = None) -> Codec:
        """Return a model's codec, with other parts where they are named; the last few stay loaded.

        Raises:
            WeightsError: when there is none.
        """
        if model not in self.models:
            raise WeightsError(f"there is no model {model!r}")
        encoder, decoder = (None if part in (None, "", OWN) else part for part in (encoder, decoder))
        key = (model, encoder, decoder)
        with self._lock:
            codec = self._loaded.pop(key, None)
            if codec is None:
                codec = load(self.models[model], self.device, encoder=encoder, decoder=decoder)
            self._loaded[key] = codec
            if len(self._loaded) > KEPT:
                del self._loaded[next(iter(self._loaded))]
            return codec

    def parts(self, model: str, kind: str) -> list[str]:
        """Return the names of the encoders or decoders that were made for a model."""
        return list((encoders if kind == "encoder" else decoders)(self.codec(model)))

    def read_image(self, path: str | Path | None) -> Image.Image:
        """Read an image within the limits.

        Raises:
            ImageError: when there is none, it is too large, or it cannot be read.
        """
        if path is None:
            raise ImageError("choose an image first")
        name = Path(path).name
        self._check_bytes(path)
        self._check_pixels(name, open_image(path, name).size)
        return read_rgb(path, name)

    def _check_bytes(self, path: str | Path) -> None:
        size = Path(path).stat().st_size
        if size > self.max_bytes:
            raise ImageError(
                f"{Path(path).name}: {size / 1e6:.1f} MB, more than the limit of {self.max_bytes / 1e6:g} MB"
            )

    def _check_pixels(self, name: str, size: tuple[int, int]) -> None:
        if size[0] * size[1] > self.max_pixels:
            raise ImageError(
                f"{name}: {size[0]} x {size[1]} pixels, more than the limit of "
                f"{self.max_pixels / 1e6:g} million"
            )

    def compress(
        self,
        path: str | Path | None,
        model: str,
        quality: float = 50,
        target_size: int | None = None,
        encoder: str | None = None,
    ) -> Coded:
        """Compress an image file and decode what was written.

        Args:
            path: the image.
            model: name of the model.
            quality: 0 to 100.
            target_size: bytes at most, instead of a quality.
            encoder: name of an encoder that was made for the model.

        Raises:
            ValueError: when it cannot be done; the message says why.
        """
        image = self.read_image(path)
        return self._code(image, Path(str(path)).stem, model, quality, target_size, encoder)

    def _code(
        self,
        image: Image.Image,
        stem: str,
        model: str,
        quality: float,
        target_size: int | None = None,
        encoder: str | None = None,
        compared: bool = True,
    ) -> Coded:
        """Code an image; `compared` where what comes out should look like what went in."""
        codec = self.codec(model, encoder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TargetWarning)
            if target_size is None:
                data = codec.compress(image, quality)
            else:
                data = codec.compress(image, target_size=int(target_size))
        decoded = codec.decompress(data)
        try:
            coarse = codec.decode_z(data)
        except ValueError:
            coarse = None  # a model without a hyper code
        pixels = image.width * image.height
        header, _ = unpack(data)
        note = " ".join(str(warning.message) for warning in caught)
        figures = {
            "size": f"{image.width} x {image.height} pixels",
            "file": f"{len(data):,} bytes",
            "bits per pixel": f"{8 * len(data) / pixels:.4f}",
            "ratio": f"1 : {3 * pixels / len(data):,.0f}",
            "quality": f"{codec.quality_of(header.rate):.1f} of 100",
            **(self.measure(image, decoded) if compared else {}),
        }
        return Coded(image, decoded, self._keep(data, stem), figures, coarse, note)

    def _keep(self, data: bytes, stem: str) -> Path:
        """Write a file where the page can offer it, in a folder of its own."""
        file = Path(tempfile.mkdtemp(dir=self.folder.name)) / f"{stem or 'image'}.glc"
        file.write_bytes(data)
        return file

    def measure(self, original: Image.Image, image: Image.Image) -> dict[str, str]:
        """Return the metrics of a decoded image that can be had here, by name."""
        metrics = _metrics(self.weights_dir)
        if metrics is None:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a metric that is not defined for a small image is left out
            values = metrics(stack_images([original]), stack_images([image]))
        return values

    def open(self, path: str | Path | None) -> tuple[Image.Image, dict[str, str]]:
        """Decode a `.glc` file with the model that made it; return the image and what to tell of it.

        Raises:
            ValueError: when it cannot be done; the message says why.
        """
        if path is None:
            raise ImageError("choose a .glc file first")
        self._check_bytes(path)
        data = Path(path).read_bytes()
        header, _ = unpack(data, self.max_pixels)
        name = self._made_by(header)
        if name is None:
            raise WrongWeightsError(
                f"{Path(path).name}: written with the weights {header.fingerprint.hex()}, "
                "which no model here has"
            )
        codec = self.codec(name)
        image = codec.decompress(data, max_pixels=self.max_pixels)
        figures = {
            "size": f"{header.width} x {header.height} pixels",
            "file": f"{len(data):,} bytes",
            "bits per pixel": f"{8 * len(data) / (header.width * header.height):.4f}",
            "quality": f"{codec.quality_of(header.rate):.1f} of 100",
            "model": name,
        }
        return image, figures

    def _made_by(self, header: Header) -> str | None:
        """Return the name of the model that a file was made with; a model that cannot be loaded is none."""
        for name in self.models:
            try:
                if self.codec(name).fingerprint == header.fingerprint:
                    return name
            except WeightsError:
                continue
        return None

    def restore(
        self, path: str | Path | None, model: str, encoder: str, quality: float
    ) -> tuple[Coded, Coded]:
        """Compress a degraded image with a restoration encoder, and with the model's own."""
        image = self.read_image(path)
        stem = Path(str(path)).stem
        return (
            self._code(image, stem, model, quality, encoder=encoder, compared=False),
            self._code(image, stem, model, quality, compared=False),
        )

    def canvas(self, path: str | Path | None) -> Image.Image:
        """Return an image to paint on: as it is, or smaller where the page could not send it back.

        The page sends PNGs of what was painted and of what lies under it, up to four bytes a pixel.

        Raises:
            ImageError: as `read_image` does.
        """
        image = self.read_image(path)
        most = min(CANVAS, self.max_bytes // 5)
        factor = (most / (image.width * image.height)) ** 0.5
        if factor >= 1:
            return image
        return image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))

    def inpaint(
        self, path: str | Path | None, mask: np.ndarray | None, model: str, encoder: str, quality: float
    ) -> tuple[Image.Image, Coded]:
        """Fill what a mask covers with grey, and let an encoder invent it.

        Args:
            path: the image.
            mask: `[H, W]`, bool, true where its `canvas` was painted over.
            model: name of the model.
            encoder: name of an inpainting encoder.
            quality: 0 to 100.

        Returns:
            The image with its holes, and what came of it.

        Raises:
            ValueError: when there is no image, or nothing was painted over.
        """
        image = self.read_image(path)
        if mask is None or not mask.any():
            raise ImageError("paint over what is to be replaced first")
        # The brush's edge is soft: what it covers in part is lost as well.
        wide = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))
        holed = image.copy()
        holed.paste((GREY, GREY, GREY), mask=wide.resize(image.size, Image.Resampling.NEAREST))
        coded = self._code(holed, Path(str(path)).stem, model, quality, encoder=encoder, compared=False)
        return holed, coded

    def stylize(
        self, path: str | Path | None, model: str, decoder: str, quality: float
    ) -> tuple[Coded, Image.Image]:
        """Compress an image, and draw the file with the model's own decoder and with one of a style."""
        coded = self.compress(path, model, quality)
        return coded, self.codec(model, decoder=decoder).decompress(coded.file.read_bytes())


Measure = Callable[..., dict[str, str]]


@cache
def _metrics(weights_dir: Path | None) -> Measure | None:
    """Return what measures images, or None where the packages for it are not installed."""
    try:
        from glc.losses.perceptual import LPIPS
        from glc.metrics.quality import MSSSIM, PSNR, QualityMetrics
    except ImportError:
        return None
    labels = {"psnr": ("PSNR", "{:.2f} dB"), "ms_ssim": ("MS-SSIM", "{:.4f}"), "lpips": ("LPIPS", "{:.4f}")}
    scores = {"psnr": PSNR(), "ms_ssim": MSSSIM()}
    try:
        quality = QualityMetrics({**scores, "lpips": partial(LPIPS, "alex", weights_dir)})
    except (ImportError, ValueError, OSError):
        quality = QualityMetrics(scores)

    def measure(x, x_hat) -> dict[str, str]:  # type: ignore[no-untyped-def]
        found = quality.measure(x, x_hat)
        return {labels[name][0]: labels[name][1].format(float(value)) for name, value in found.items()}

    return measure

"""The web app without its user interface: compress, decode, restore, inpaint, stylize."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageFilter

from glc.app.decoder_page import has_runtime, write_page
from glc.app.guard import Folder
from glc.codec.base import BaseCodec, TargetWarning
from glc.codec.bitstream import DEFAULT_LIMIT, Header, unpack
from glc.codec.codec import Codec, load
from glc.codec.weights.catalog import DEFAULT_MODEL, catalog, decoders, encoders
from glc.data.images import Reporter, open_image, read_rgb, stack_images
from glc.errors import ImageError, WeightsError, WrongWeightsError

OWN = "the model's own"
"""The choice of the model's own encoder or decoder."""
GREY = 128
"""Level that holes are filled with; inpainting encoders are trained on it."""
CANVAS = 1_000_000
"""Maximum pixels of an image to paint on; more would slow down the page."""
KEPT = 4
"""Number of most recently used codecs that stay loaded."""


@dataclass(frozen=True)
class Coded:
    """An image, its compressed file and its reconstruction."""

    original: Image.Image
    image: Image.Image
    file: Path
    """The `.glc` file."""
    metrics: dict[str, str]
    """Values to show, by name."""
    coarse: Image.Image | None = None
    """Decoded from the hyper-latent alone; None for a model without a hyperprior."""
    note: str = ""
    """What the codec could not do, and what reading did to the image; lines of text."""
    uncertain: Image.Image | None = None
    """Map of what the file does not determine, if it was wanted."""


@dataclass
class Service:
    """The operations of the web app on a set of models; thread-safe.

    Args:
        model: file or name of the model selected initially; None for the default one.
        device: device of the networks.
        max_bytes: maximum size of an input file.
        max_pixels: maximum width x height of an image.
        weights_dir: folder with the weights of LPIPS; None for torch hub's cache. Nothing is downloaded.
        background: colour behind transparent pixels, such as `white` or `#rrggbb`.

    Raises:
        WeightsError: no model is available.
    """

    model: str | None = None
    device: str = "auto"
    max_bytes: int = 32_000_000
    max_pixels: int = 24_000_000
    weights_dir: Path | None = None
    background: str = "white"
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
            # A file with the name of another model keeps its suffix, so that both can be selected.
            first = file.stem if known is None or Path(known).resolve() == file.resolve() else file.name
            self.models = {**self.models, first: str(self.model)}
        if not self.models:
            raise WeightsError("no model found; give a weights file with --model")
        if first is None:
            first = DEFAULT_MODEL if DEFAULT_MODEL in self.models else next(iter(self.models))
        self.first = first
        self.codec(self.first)
        self.folder = Folder()
        self._decoder = tempfile.TemporaryDirectory(prefix="glc-decoder-")  # not swept by age

    def decoder_page(self) -> Path | None:
        """Write the page that decodes files of the first model in a browser; return its folder.

        Returns:
            None without ONNX Runtime Web, or if the model cannot be decoded in a browser.
        """
        if not has_runtime():
            return None
        folder = Path(self._decoder.name)
        try:
            write_page(folder, [self.models[self.first]])
        except WeightsError:
            return None
        return folder

    def codec(self, model: str, encoder: str | None = None, decoder: str | None = None) -> Codec:
        """Return a model's codec, with other encoder or decoder variants if named; recent codecs stay loaded.

        Raises:
            WeightsError: there is no such model or variant.
        """
        if model not in self.models:
            raise WeightsError(f"{model}: no such model; choose one of {', '.join(self.models)}")
        encoder, decoder = (None if name in (None, "", OWN) else name for name in (encoder, decoder))
        key = (model, encoder, decoder)
        with self._lock:
            codec = self._loaded.pop(key, None)
            if codec is None:
                codec = load(self.models[model], self.device, encoder=encoder, decoder=decoder)
            self._loaded[key] = codec
            if len(self._loaded) > KEPT:
                del self._loaded[next(iter(self._loaded))]
            return codec

    def variants(self, model: str, kind: str) -> list[str]:
        """Return the names of the encoder or decoder variants made for a model."""
        return list((encoders if kind == "encoder" else decoders)(self.codec(model)))

    def read_image(self, path: str | Path | None, notes: list[str] | None = None) -> Image.Image:
        """Read an image within the limits.

        Args:
            notes: gets a line for each thing that reading does to it.

        Raises:
            ImageError: no image is given, it is too large, or it cannot be read.
        """
        if path is None:
            raise ImageError("no image; choose one first")
        name = Path(path).name
        self._check_bytes(path)
        self._check_pixels(name, open_image(path, name).size)
        report = Reporter((notes if notes is not None else []).append)
        return read_rgb(path, name, background=self.background, report=report)

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
        uncertainty: bool = False,
    ) -> Coded:
        """Compress an image and decode the result.

        Args:
            quality: 0 to 100.
            target_size: maximum bytes, instead of a quality.
            uncertainty: whether to map what the file does not determine.

        Raises:
            ValueError: it cannot be done; the message gives the reason.
        """
        notes: list[str] = []
        image = self.read_image(path, notes)
        stem = Path(str(path)).stem
        return self._code(
            image, stem, model, quality, target_size, encoder, notes=notes, uncertainty=uncertainty
        )

    def _code(
        self,
        image: Image.Image,
        stem: str,
        model: str,
        quality: float,
        target_size: int | None = None,
        encoder: str | None = None,
        compared: bool = True,
        notes: Sequence[str] = (),
        uncertainty: bool = False,
    ) -> Coded:
        """Compress and decode an image; `compared`: measure the result against the input."""
        codec = self.codec(model, encoder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TargetWarning)
            if target_size is None:
                data = codec.compress(image, quality)
            else:
                data = codec.compress(image, target_size=int(target_size))
        decoded, uncertain = _decoded(codec, data, uncertainty)
        try:
            coarse = codec.decode_z(data)
        except ValueError:
            coarse = None  # a model without a hyperprior
        pixels = image.width * image.height
        header, _ = unpack(data)
        note = "\n\n".join([*(str(warning.message) for warning in caught), *notes])
        metrics = {
            "size": f"{image.width} x {image.height} pixels",
            "file": f"{len(data):,} bytes",
            "bits per pixel": f"{8 * len(data) / pixels:.4f}",
            "ratio": f"1 : {3 * pixels / len(data):,.0f}",
            "quality": f"{codec.quality_of(header.rate_index):.1f} of 100",
            **(self.measure(image, decoded) if compared else {}),
        }
        return Coded(image, decoded, self._keep(data, stem), metrics, coarse, note, uncertain)

    def _keep(self, data: bytes, stem: str) -> Path:
        """Save a file in a new folder, for download."""
        file = Path(tempfile.mkdtemp(dir=self.folder.path)) / f"{stem or 'image'}.glc"
        file.write_bytes(data)
        return file

    def measure(self, original: Image.Image, image: Image.Image) -> dict[str, str]:
        """Return the available metrics of a decoded image, by name."""
        metrics = _metrics(self.weights_dir)
        if metrics is None:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a metric that is undefined for a small image is omitted
            values = metrics(stack_images([original]), stack_images([image]))
        return values

    def open(
        self, path: str | Path | None, uncertainty: bool = False
    ) -> tuple[Image.Image, dict[str, str], Image.Image | None]:
        """Decode a `.glc` file with the model that made it.

        Returns:
            The image, values to show, and a map of what the file does not determine if it is wanted.

        Raises:
            ValueError: it cannot be done; the message gives the reason.
        """
        if path is None:
            raise ImageError("no file; choose a .glc file first")
        self._check_bytes(path)
        data = Path(path).read_bytes()
        header, _ = unpack(data, self.max_pixels)
        name = self._made_by(header)
        if name is None:
            raise WrongWeightsError(
                f"{Path(path).name}: made with weights {header.fingerprint.hex()}, which match no model "
                "of this app; add the model with --model"
            )
        codec = self.codec(name)
        image, uncertain = _decoded(codec, data, uncertainty, self.max_pixels)
        metrics = {
            "size": f"{header.width} x {header.height} pixels",
            "file": f"{len(data):,} bytes",
            "bits per pixel": f"{8 * len(data) / (header.width * header.height):.4f}",
            "quality": f"{codec.quality_of(header.rate_index):.1f} of 100",
            "model": name,
        }
        return image, metrics, uncertain

    def _made_by(self, header: Header) -> str | None:
        """Return the name of the model that made a file, or None; skip models that cannot be loaded."""
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
        """Compress a degraded image with a restoration encoder, and with the model's own encoder."""
        notes: list[str] = []
        image = self.read_image(path, notes)
        stem = Path(str(path)).stem
        return (
            self._code(image, stem, model, quality, encoder=encoder, compared=False, notes=notes),
            self._code(image, stem, model, quality, compared=False),
        )

    def canvas(self, path: str | Path | None) -> Image.Image:
        """Return an image to paint on, downscaled if the browser could not send it back.

        The browser sends PNGs of the painted layer and of the image, up to four bytes per pixel.

        Raises:
            ImageError: as in `read_image`.
        """
        image = self.read_image(path)
        max_pixels = min(CANVAS, self.max_bytes // 5)
        factor = (max_pixels / (image.width * image.height)) ** 0.5
        if factor >= 1:
            return image
        return image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))

    def inpaint(
        self, path: str | Path | None, mask: np.ndarray | None, model: str, encoder: str, quality: float
    ) -> tuple[Image.Image, Coded]:
        """Fill a mask with grey, and compress with an inpainting encoder.

        Args:
            mask: `[H, W]`, bool, in the size of `canvas`; true for pixels to replace.
            quality: 0 to 100.

        Returns:
            The image with its holes, and the result.

        Raises:
            ValueError: there is no image, or the mask is empty.
        """
        notes: list[str] = []
        image = self.read_image(path, notes)
        if mask is None or not mask.any():
            raise ImageError("nothing to fill; paint over the area to replace first")
        # The brush has a soft edge: pixels that it covers in part are replaced too.
        wide = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))
        holed = image.copy()
        holed.paste((GREY, GREY, GREY), mask=wide.resize(image.size, Image.Resampling.NEAREST))
        stem = Path(str(path)).stem
        coded = self._code(holed, stem, model, quality, encoder=encoder, compared=False, notes=notes)
        return holed, coded

    def stylize(
        self, path: str | Path | None, model: str, decoder: str, quality: float
    ) -> tuple[Coded, Image.Image]:
        """Compress an image, and decode it with the model's own decoder and with a style decoder."""
        coded = self.compress(path, model, quality)
        return coded, self.codec(model, decoder=decoder).decompress(coded.file.read_bytes())


def _decoded(
    codec: BaseCodec, data: bytes, uncertainty: bool, max_pixels: int = DEFAULT_LIMIT
) -> tuple[Image.Image, Image.Image | None]:
    """Return the image in a file and, if wanted, the map of its uncertainty."""
    if not uncertainty:
        return codec.decompress(data, max_pixels=max_pixels), None
    found = codec.uncertainty(data, max_pixels=max_pixels)
    return found.image, found.map


Measure = Callable[..., dict[str, str]]


@cache
def _metrics(weights_dir: Path | None) -> Measure | None:
    """Return a function that measures images, or None if the packages are not installed."""
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

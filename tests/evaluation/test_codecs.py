"""Codecs of an evaluation, with the real encoders where they are installed."""

import io
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from glc.codec.base import TargetWarning
from glc.errors import TargetError
from glc.evaluation.codecs.base import CodecUnavailable, ImageCodec, Setting
from glc.evaluation.codecs.latent import LatentCodec
from glc.evaluation.codecs.still import StillCodec
from glc.evaluation.codecs.video import VideoCodec
from glc.evaluation.codecs.zoo import ZooCodec
from glc.latent_optimization import LatentOptimizer
from glc.launch.evaluate import codec_makers
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.losses.test_perceptual import FILES, reference, save_features

CONF = Path(__file__).parents[2] / "conf"
REAL = ("jpeg", "webp", "avif", "jpegxl", "hevc", "av1", "vvc")


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", ["out=x", *words])


def configured(name: str, **changes: Any) -> ImageCodec:
    return instantiate(composed("codec=x", "metrics=none").codecs[name], _convert_="all", **changes)


def psnr(a: Image.Image, b: Image.Image) -> float:
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return float(10 * np.log10(255**2 / np.mean(difference**2)))


def smooth(width: int, height: int) -> Image.Image:
    """A colourful image that any codec does well at its best."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", REAL)
def test_images_of_odd_sizes_survive_in_colour(name: str) -> None:
    codec = configured(name)
    image = smooth(67, 45)
    best, worst = codec.ladder[-1], codec.ladder[0]
    # The extremes of some encoders are modes of their own.
    good = {"jpeg": 90, "webp": 90, "avif": 85, "jpegxl": 90}.get(name, 12)
    assert min(best, worst) <= good <= max(best, worst)
    data = codec.encode(image, Setting(quality=good))
    decoded = codec.decode(data)
    assert decoded.size == (67, 45)
    assert decoded.mode == "RGB"
    assert psnr(image, decoded) > 34  # a wrong matrix or range of colours costs more
    assert len(codec.encode(image, codec.settings[0])) < len(data)
    assert codec.encode(image, Setting(quality=good)) == data
    assert all(codec.versions().values())
    assert b"x265" not in data  # which would put 2 kB of its options into each file


@pytest.mark.parametrize("name", ["hevc", "vvc"])
def test_padding_is_stored_in_one_byte_before_the_stream(name: str) -> None:
    codec = configured(name)
    (setting, *_) = codec.settings
    assert codec.encode(smooth(67, 45), setting)[0] == 5 * 16 + 3
    assert codec.encode(smooth(64, 48), setting)[0] == 0
    assert codec.encode(smooth(64, 48), setting)[1:5] in (b"\0\0\0\1", b"\0\0\1\0", b"\0\0\1\x40")


@pytest.mark.parametrize("name", ["jpeg", "vvc"])
def test_damaged_files_are_errors(name: str) -> None:
    codec = configured(name)
    data = codec.encode(smooth(64, 48), codec.settings[0])
    for damaged in (data[:10], b"\0" * 50):
        with pytest.raises((ValueError, OSError, RuntimeError)):
            codec.decode(damaged)


def test_metadata_of_the_original_is_not_coded() -> None:
    codec = configured("jpeg")
    plain = smooth(64, 48)
    stream = io.BytesIO()
    plain.save(stream, "PNG", icc_profile=b"profile" * 100)
    with_profile = Image.open(stream)
    with_profile.load()
    assert codec.encode(with_profile, codec.settings[0]) == codec.encode(plain, codec.settings[0])


def test_a_target_rate_is_searched_on_the_codecs_own_ladder() -> None:
    image = Image.fromarray(fixed_image(256, 256))
    codec = configured("jpeg", qualities=None, target_bpp=[1.0])
    (setting,) = codec.settings
    assert (setting.label, setting.as_dict()) == ("bpp1", {"target_bpp": 1.0})
    with pytest.warns(TargetWarning, match="is the closest below 1 bpp"):
        data = codec.encode(image, setting)
    sizes = [len(codec.encode_at(image, quality)) for quality in codec.ladder]
    assert len(data) == max(size for size in sizes if size <= 256 * 256 / 8)
    with pytest.raises(TargetError, match=r"the smallest file has \d+ bytes \(0\.\d+ bpp, quality 1\)"):
        codec.encode(image, Setting(target_bpp=0.01))


ENDS = {"jpeg": 95, "webp": 100, "avif": 100, "jpegxl": 99, "hevc": 0, "av1": 0, "vvc": 0}
"""Quality of the largest file of each codec."""


@pytest.mark.parametrize("name", REAL)
def test_search_reaches_both_ends_of_the_codecs_own_limits(name: str) -> None:
    """The search tries the smallest and the largest file first: each must be one that the encoder writes."""
    codec = configured(name, qualities=None, target_bpp=[100.0])
    image = smooth(64, 48)
    with pytest.warns(TargetWarning, match=f"at quality {ENDS[name]} is the closest below 100 bpp"):
        data = codec.encode(image, codec.settings[0])
    assert codec.decode(data).size == (64, 48)
    assert data == codec.encode_at(image, ENDS[name])
    with pytest.raises(TargetError, match=f"quality {codec.ladder[0]}"):
        codec.encode(image, Setting(target_bpp=0.001))


def test_conversions_are_what_the_files_say() -> None:
    """Of formats whose files tell their colour format; 4:2:0 of lossy WebP is part of the format."""
    image = smooth(67, 45)
    for name in ("jpeg", "webp", "avif", "jpegxl", "hevc", "av1", "vvc", "vvc_qpa0"):
        assert configured(name).conversion.startswith("8-bit RGB, ")
    jpeg = configured("jpeg").encode_at(image, 50)
    with Image.open(io.BytesIO(jpeg)) as opened:
        assert [(layer[1], layer[2]) for layer in opened.layer] == [(2, 2), (1, 1), (1, 1)]
    avif = configured("avif").encode_at(image, 50)
    colour = avif.index(b"colrnclx") + 8
    primaries, transfer, matrix = struct.unpack(">3H", avif[colour : colour + 6])
    assert (primaries, transfer, matrix, avif[colour + 6] >> 7) == (1, 13, 6, 1)  # BT.709, sRGB, BT.601, full
    configuration = avif.index(b"av1C") + 6
    assert (
        avif[configuration] & 0b01111100 == 0b00001100
    )  # 8 bits, three planes, subsampled in both directions
    assert "perceptual quantisation (qpa)" in configured("vvc").conversion


def test_vvc_has_an_entry_for_each_quantisation() -> None:
    image = smooth(256, 192)
    with_qpa, without = (len(configured(name).encode_at(image, 46)) for name in ("vvc", "vvc_qpa0"))
    assert with_qpa != without


def test_limits_hold_for_codecs_made_in_python() -> None:
    assert StillCodec("JXL", ".jxl", plugin="pillow_jxl", qualities=[5]).ladder == range(100)
    assert StillCodec("JPEG", ".jpg", qualities=[5]).ladder == range(1, 96)
    assert StillCodec("JPEG", ".jpg", lowest=0, highest=50, qualities=[5]).ladder == range(51)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("jpeg", {"qualities": [96]}, "jpeg: quality 96 is out of range; give 1 to 95"),
        ("jpeg", {"qualities": [5.5]}, "jpeg: quality 5.5 is not an integer"),
        ("jpeg", {"qualities": [5, 5]}, "jpeg: duplicate settings"),
        ("jpeg", {"qualities": []}, "jpeg: give at least one of"),
        ("jpeg", {"qualities": None, "target_bpp": [0.0]}, "target_bpp=.*give positive bits"),
        ("jpegxl", {"qualities": [100]}, "jpegxl: quality 100 is out of range; give 0 to 99"),
        ("vvc", {"qualities": [64]}, "vvc: quality 64 is out of range; give 0 to 63"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        configured(name, **values)


def test_a_missing_codec_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def message(make: Callable[..., ImageCodec], *arguments: Any, **options: Any) -> str:
        with pytest.raises(CodecUnavailable) as caught:
            make(*arguments, qualities=[1], **options)
        return str(caught.value)

    missing = message(StillCodec, "JXL", ".jxl", plugin="no_plugin", install="pip install it")
    assert "no_plugin is not installed; run pip install it" in missing
    assert "does not support NONE; run pip install 'pillow" in message(StillCodec, "NONE", ".none")
    old = message(VideoCodec, "libnone", ".n", "none", [])
    assert "without libnone; run pip install --upgrade imageio-ffmpeg" in old
    for package in ("imageio_ffmpeg", "compressai"):
        monkeypatch.setitem(sys.modules, package, None)
    none = message(VideoCodec, "libvvenc", ".vvc", "vvc", [])
    assert "vvc: ffmpeg is not installed; run pip install imageio-ffmpeg" in none
    assert "pip install compressai" in message(ZooCodec)


def test_the_latent_codec_writes_its_own_files(tmp_path: Path) -> None:
    weights = fixed_codec_weights(tmp_path / "mine.safetensors")
    codec = LatentCodec(weights)
    assert codec.name == "mine"
    assert [setting.label for setting in codec.settings] == ["q0", "q33.33", "q66.67", "q100"]
    assert [codec.codec.rate_index(s.quality or 0) for s in codec.settings] == [0, 4096, 8192, 12288]
    image = Image.fromarray(fixed_image(40, 50))
    data = codec.encode(image, codec.settings[1])
    assert data == codec.codec.compress(image, 100 / 3)
    assert codec.decode(data).tobytes() == codec.codec.decompress(data).tobytes()
    assert codec.fingerprint == codec.codec.weights.fingerprint
    assert len(str(codec.options()["encoder_fingerprint"])) == 64
    bpp = 1.01 * 8 * len(data) / 2000
    (setting,) = LatentCodec(weights, target_bpp=[bpp]).settings
    assert bpp >= 8 * len(codec.encode(image, setting)) / 2000 > 0.9 * bpp


def test_the_latent_codec_optimizes_latents(tmp_path: Path) -> None:
    weights = fixed_codec_weights(tmp_path / "mine.safetensors")
    save_features(reference("squeeze"), tmp_path / FILES["squeeze"])
    words = (f"codec='{weights}'", "optimize_latent=2", f"metrics.weights_dir='{tmp_path}'")
    searching = codec_makers(composed(*words))["mine"]("cpu")
    plain = LatentCodec(weights)
    assert searching.name == "mine-optimized2"
    assert searching.options() == {**plain.options(), "optimize_latent": 2}
    image = Image.fromarray(fixed_image(64, 64))
    data = searching.encode(image, plain.settings[1])
    assert data != plain.encode(image, plain.settings[1])
    assert plain.decode(data).tobytes() == searching.decode(data).tobytes()
    optimizer = LatentOptimizer(2, weights_dir=tmp_path)
    assert data == plain.codec.compress(image, 100 / 3, optimize_latent=optimizer)
    # It does not apply to other codecs.
    jpeg = codec_makers(composed("codec=jpeg", "optimize_latent=2"))["jpeg"]("cpu")
    assert "optimize_latent" not in jpeg.options()


class Halving(torch.nn.Module):
    """Stands for a model of the zoo: keeps every second pixel, as bytes."""

    def __init__(self, quality: int, metric: str, pretrained: bool) -> None:
        super().__init__()
        assert pretrained
        self.updated = False

    def update(self) -> None:
        self.updated = True

    def compress(self, x: torch.Tensor) -> dict[str, Any]:
        assert self.updated
        assert x.shape[2] % 64 == x.shape[3] % 64 == 0
        small = (x[:, :, ::2, ::2] * 255).round().to(torch.uint8)
        return {"strings": [[small.numpy().tobytes()], [b"z"]], "shape": small.shape[2:]}

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
        assert strings[1] == [b"z"]
        values = np.frombuffer(strings[0][0], dtype=np.uint8).reshape(1, 3, *shape).copy()
        small = torch.from_numpy(values).float().div(255)
        return {"x_hat": small.repeat_interleave(2, 2).repeat_interleave(2, 3)}


def test_models_of_the_zoo_get_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    package, zoo = types.ModuleType("compressai"), types.ModuleType("compressai.zoo")
    zoo.image_models = {"halving": Halving}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "compressai", package)
    monkeypatch.setitem(sys.modules, "compressai.zoo", zoo)
    codec = ZooCodec("halving", qualities=[1, 3])
    pixels = np.repeat(np.repeat(fixed_image(20, 35), 2, 0), 2, 1)
    data = codec.encode(Image.fromarray(pixels), codec.settings[1])
    assert len(data) == 10 + 4 + 3 * 32 * 64 + 4 + 1
    np.testing.assert_array_equal(np.asarray(codec.decode(data)), pixels)
    with pytest.raises(ValueError, match="truncated"):
        codec.decode(data[:8])
    with pytest.raises(ValueError, match="architecture='other' is unknown; choose one of halving"):
        ZooCodec("other", qualities=[1])

    def offline(**values: Any) -> None:
        raise OSError("no route")

    zoo.image_models["halving"] = offline  # type: ignore[attr-defined]
    with pytest.raises(CodecUnavailable, match=r"quality 1 are not available \(no route\)"):
        ZooCodec("halving", qualities=[1])

"""Intra coding with video codecs (HEVC, AV1, VVC) through ffmpeg.

Images are converted to 10-bit 4:2:0, BT.709, full range, and back after decoding. The conversion loss counts
against the codec.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glc.evaluation.codecs.base import CodecUnavailable, ImageCodec

_QUIET = ("-hide_banner", "-loglevel", "error", "-nostdin", "-threads", "1")
_SCALER = "flags=lanczos+accurate_rnd+full_chroma_int"
_COLOUR = (
    "-color_range", "pc", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "iec61966-2-1",
)  # fmt: skip


COARSEST = {"libx265": 51, "libaom-av1": 63, "libvvenc": 63}
"""Coarsest quantiser of each encoder: a limit of a rate search."""


class VideoCodec(ImageCodec):
    """One intra frame of a video codec, as an elementary stream.

    ```
    stream                                                       multiple = 1: any size
    [1 byte: columns x 16 + rows of padding] [stream]            otherwise
    ```

    The first byte is zero for images without padding. HEVC and VVC allow a leading zero byte, so that such a
    file plays in any player. All bytes count.

    Args:
        encoder: ffmpeg's name, such as `libvvenc`.
        suffix: suffix of the files.
        container: ffmpeg's name of the elementary stream's format.
        arguments: the encoder's arguments; `{quality}` stands for the quality.
        best: quality of the largest file.
        worst: quality of the smallest file; None: the encoder's.
        multiple: sides are padded to multiples of it by replication.
        pixel_format: ffmpeg's name of the coded pixel format.
        timeout: time limit of an encoder, in seconds.
        name: name in tables; the suffix without its dot by default.
        note: what a reader of results should know about the arguments; empty for nothing.
        qualities: integers between `best` and `worst`; smaller is better for all of these codecs.
        target_bpp: bits per pixel instead.

    Raises:
        CodecUnavailable: ffmpeg is not installed, or was built without the encoder.
        ValueError: a quality is out of range.
    """

    def __init__(
        self,
        encoder: str,
        suffix: str,
        container: str,
        arguments: Sequence[str],
        best: int = 0,
        worst: int | None = None,
        multiple: int = 1,
        pixel_format: str = "yuv420p10le",
        timeout: float = 1800,
        name: str | None = None,
        note: str = "",
        qualities: Sequence[float] | None = None,
        target_bpp: Sequence[float] | None = None,
    ) -> None:
        self.encoder, self.suffix, self.container = encoder, suffix, container
        self.arguments, self.multiple, self.pixel_format = list(arguments), multiple, pixel_format
        self.timeout = timeout
        padding = f"padded to multiples of {multiple} by replication" if multiple > 1 else "not padded"
        self.conversion = f"8-bit RGB, {padding}; {pixel_format}, BT.709, full range, chroma by Lanczos"
        self.conversion += f"; {note}" if note else ""
        self.name = self.kind = name or suffix.removeprefix(".")
        self.ladder = range(COARSEST.get(encoder, 63) if worst is None else worst, best - 1, -1)
        self.ffmpeg = _find_ffmpeg(self.kind)
        listed = subprocess.run([self.ffmpeg, "-hide_banner", "-encoders"], capture_output=True, text=True)
        if not re.search(rf"^ V\S+ +{re.escape(encoder)} ", listed.stdout, re.M):
            raise CodecUnavailable(
                f"{self.kind}: {self.ffmpeg} was built without {encoder}; run pip install --upgrade "
                "imageio-ffmpeg, and unset IMAGEIO_FFMPEG_EXE if it names another ffmpeg"
            )
        super().__init__(qualities, target_bpp)

    def encode_at(self, image: Image.Image, quality: float) -> bytes:
        """Return the file of an image.

        Raises:
            RuntimeError: ffmpeg failed; the message has its last line.
        """
        right, bottom = -image.width % self.multiple, -image.height % self.multiple
        pixels = np.pad(np.asarray(image), ((0, bottom), (0, right), (0, 0)), mode="edge")
        height, width = pixels.shape[:2]
        source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", f"{width}x{height}", "-i", "pipe:0")
        scale = f"scale=in_range=full:out_range=full:out_color_matrix=bt709:{_SCALER}"
        arguments = [argument.format(quality=int(quality)) for argument in self.arguments]
        with tempfile.TemporaryDirectory() as folder:
            stream = Path(folder, "stream")
            self._run(
                *source, "-vf", scale, "-pix_fmt", self.pixel_format, *_COLOUR, "-frames:v", "1",
                "-c:v", self.encoder, *arguments, "-threads", "1", "-f", self.container, str(stream),
                data=pixels.tobytes(),
            )  # fmt: skip
            coded = stream.read_bytes()
        if not coded:
            raise RuntimeError(f"{self.encoder} wrote nothing for an image of {image.width}x{image.height}")
        return coded if self.multiple == 1 else bytes([right * 16 + bottom]) + coded

    def decode(self, data: bytes) -> Image.Image:
        """Decode a file.

        Raises:
            RuntimeError: ffmpeg failed, or the file contains no image.
        """
        right, bottom = (0, 0) if self.multiple == 1 else divmod(data[0], 16)
        scale = f"scale=in_range=full:in_color_matrix=bt709:out_range=full:{_SCALER}"
        with tempfile.TemporaryDirectory() as folder:
            stream = Path(folder, "stream")
            stream.write_bytes(data if self.multiple == 1 else data[1:])
            # PPM has the image size in its header.
            shown = self._run(
                "-f", self.container, "-i", str(stream), "-vf", scale, "-frames:v", "1",
                "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1",
            )  # fmt: skip
        found = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", shown)
        if found is None or len(shown) - found.end() != 3 * int(found[1]) * int(found[2]):
            raise RuntimeError(f"{self.kind}: the file contains no image")
        width, height = int(found[1]), int(found[2])
        image = Image.frombytes("RGB", (width, height), shown[found.end() :])
        return image.crop((0, 0, width - right, height - bottom))

    def _run(self, *arguments: str, data: bytes | None = None) -> bytes:
        command = [self.ffmpeg, *_QUIET, *arguments]
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=self.timeout)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{self.kind}: ffmpeg took more than {self.timeout:g} s") from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{self.kind}: ffmpeg failed: {lines[-1] if lines else done.returncode}")
        return done.stdout

    @cached_property
    def _version(self) -> str:
        shown = subprocess.run([self.ffmpeg, "-version"], capture_output=True, text=True).stdout
        found = re.match(r"ffmpeg version (\S+)", shown)
        return found[1] if found else "unknown"

    def versions(self) -> Mapping[str, str]:
        """Return the version of ffmpeg, which includes the encoders."""
        return {"ffmpeg": self._version}

    def options(self) -> Mapping[str, Any]:
        """Return the encoder, its arguments and the pixel format."""
        return {
            "encoder": self.encoder,
            "arguments": self.arguments,
            "pixels": f"{self.pixel_format}, BT.709, full range",
        }


def _find_ffmpeg(kind: str) -> str:
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise CodecUnavailable(f"{kind}: ffmpeg is not installed; run pip install imageio-ffmpeg") from error

"""The commands `glc compress` and `glc decompress`."""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glc.cli.errors import NOTHING_DONE, ONE_FAILED, NothingDoneError, message_about
from glc.cli.files import (
    Job,
    Kind,
    cores_for,
    find_jobs,
    is_single,
    outcomes,
    read_glc,
    read_image,
    sidecar,
    threads_for,
    write_result,
)
from glc.cli.notes import notes_on, say, warnings_as_notes
from glc.cli.options import (
    BACKENDS,
    background_option,
    check_latent_options,
    check_target,
    device_option,
    model_option,
    quiet_option,
    renamed_option,
    trust_option,
)
from glc.cli.shards import shard_options
from glc.codec.bitstream import DEFAULT_LIMIT
from glc.codec.runtime.resources import PRECISIONS, parse_memory
from glc.io.atomic import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

    from glc.cli.metadata import Metadata
    from glc.data.images import Reporter

GLC_SUFFIX = ".glc"
LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".tga": ("TGA", {}),
    ".jp2": ("JPEG2000", {"irreversible": False}),
}
"""Pillow's name and options of each lossless format that images can be written in, by suffix."""
WITH_METADATA = ("PNG", "WEBP", "TIFF")
"""Those that Pillow writes metadata to."""


def _memory(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_memory(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        trust_option,
        quiet_option,
        click.option("--force", is_flag=True, help="Replace existing files."),
        click.option(
            "--memory",
            metavar="SIZE",
            callback=_memory,
            help="Memory limit, e.g. 8GB.  [default: available memory]",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="auto",
            show_default=True,
            help="Precision of encoder and decoder; does not affect the bitstream's integers.",
        ),
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="auto",
            show_default=True,
            help="Runs the networks. auto: ONNX Runtime for a few images, else PyTorch, where installed.",
        ),
        device_option,
        model_option,
        click.option(
            "-o", "--output", metavar="OUT", help="File or folder to write, or - for standard output."
        ),
    ):
        command = option(command)
    return command


def _positive(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < 1e9:  # also false for NaN
        raise click.BadParameter(f"invalid bits per pixel: {value}")
    return value


def _number(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # click accepts it in any range
        raise click.BadParameter(f"not a number: {value}")
    return value


@click.command()
@shard_options
@click.argument("inputs", metavar="IN...", nargs=-1, required=True)
@click.option(
    "--quality",
    type=click.FloatRange(0, 100),
    callback=_number,
    help="From 0 (smallest file) to 100 (largest); fractions are allowed.  [default: 50]",
)
@click.option(
    "--target-bpp", type=float, callback=_positive, help="Maximum bits per pixel, instead of --quality."
)
@click.option("--target-size", type=click.IntRange(min=1), help="Maximum bytes, instead of --quality.")
@click.option(
    "--encoder",
    metavar="NAME|FILE",
    help="Encoder that replaces the model's own, e.g. for restoration; any decoder decodes its files.",
)
@click.option(
    "--optimize-latent",
    metavar="STEPS",
    type=click.IntRange(min=0),
    default=0,
    help="Latent optimisation steps per image: 0 for none; 10 is slow, seconds per step.",
)
@renamed_option("--effort", "--optimize-latent")
@click.option(
    "--lpips-weights",
    metavar="FOLDER",
    help="With --optimize-latent: folder of SqueezeNet's weights.  [default: torch hub's cache or download]",
)
@click.option(
    "--roi",
    metavar="MASK",
    help="Image of the input's size: fewer bits are spent where it is dark.",
)
@background_option
@click.option(
    "--keep-metadata",
    is_flag=True,
    help="Write EXIF (with place and time), ICC profile and XMP to NAME.glc.meta; counted in the size.",
)
@_shared_options
def compress(
    inputs: tuple[str, ...],
    quality: float | None,
    target_bpp: float | None,
    target_size: int | None,
    encoder: str | None,
    optimize_latent: int,
    lpips_weights: str | None,
    roi: str | None,
    background: str,
    keep_metadata: bool,
    output: str | None,
    model: str | None,
    device: str,
    precision: str,
    backend: str,
    memory: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Compress images into .glc files.

    IN is an image, a folder (searched recursively), or - for standard input. A result is written next to its
    source, as NAME.glc, or to OUT: a file for a single image, else a folder that reproduces the tree of the
    given folders. With a target, a file is at most 3 % smaller than the target.
    """
    check_target(quality, target_bpp, target_size)
    check_latent_options(optimize_latent, lpips_weights, encoder)
    from glc.data.images import is_image_name

    def check(job: Job) -> None:
        if keep_metadata and job.destination is None:
            raise click.UsageError("--keep-metadata: its file lies beside the result; give a file with -o")
        if job.destination is not None and is_image_name(job.destination.name):
            raise click.UsageError(
                f"{job.target}: has an image's suffix; compressed files end in {GLC_SUFFIX}"
            )

    jobs, failed = _plan(inputs, output, Kind("images", is_image_name, GLC_SUFFIX, images=True), force, check)
    results: Iterable[tuple[Job, str | Exception]] = ()
    if jobs:
        from glc.cli.codecs import Codecs, make_optimizer
        from glc.cli.metadata import Metadata
        from glc.data.images import read_rgb

        report = _reporter(quiet)
        codecs = Codecs(
            model,
            device,
            precision,
            memory,
            encoder=encoder,
            backend=backend,
            files=len(jobs),
            optimizes=optimize_latent > 0,
        )
        codecs.for_images()
        optimizer = make_optimizer(optimize_latent, lpips_weights)

        def read(job: Job) -> tuple[list[Image], Metadata]:
            source = read_image(sys.stdin.buffer) if job.source is None else job.source
            image = read_rgb(source, job.name, background=background, report=report)
            return [image], Metadata.of(source, job.name) if keep_metadata else Metadata()

        def code(job: Job, found: tuple[list[Image], Metadata]) -> tuple[tuple[bytes, bytes], str]:
            images, metadata = found
            beside = len(metadata.to_bytes(bytes(4))) if metadata else 0
            pixels = images[0].width * images[0].height
            codec = codecs.for_images(pixels)
            for size in (target_size, None if target_bpp is None else target_bpp * pixels / 8):
                if size is not None and size <= beside:
                    raise ValueError(f"the metadata alone have {beside:,} bytes; omit --keep-metadata")
            with notes_on(job.name):
                data = codec.compress(
                    images.pop(),  # not kept here, so that the codec can free a large image
                    50 if quality is None else quality,
                    target_bpp=None if target_bpp is None else target_bpp - 8 * beside / pixels,
                    target_size=None if target_size is None else target_size - beside,
                    optimize_latent=optimizer,
                    roi=roi,
                )
            size = len(data) + beside
            summary = f"{size:,} bytes, {8 * size / pixels:.4f} bpp"
            more = f" ({beside:,} of metadata)" if beside else ""
            return (data, metadata.to_bytes(data) if metadata else b""), summary + more

        def write(job: Job, made: tuple[bytes, bytes]) -> None:
            data, beside = made
            if not beside or job.destination is None:
                return write_result(job, data, force)
            path = sidecar(job.destination)
            with replacing(path) as partial:  # if the result cannot be written, an earlier one stays
                partial.write_bytes(beside)
                if path.exists() and not force:
                    raise FileExistsError(errno.EEXIST, "exists; replace it with --force", str(path))
                write_result(job, data, force)

        limited = memory is not None or optimizer is not None or codecs.chosen() == "onnx"
        device_type = codecs.device_type()
        results = outcomes(
            *(jobs, read, code, write, threads_for(device_type), cores_for(device_type, limited)),
            pixels=lambda found: found[0][0].width * found[0][0].height,
        )
    _report(results, len(jobs), failed, is_single(inputs), quiet)


@click.command()
@shard_options
@click.argument("inputs", metavar="IN...", nargs=-1, required=True)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMIT,
    help="Refuse larger images.  [default: 16384 x 16384]",
)
@click.option(
    "--decoder", metavar="NAME|FILE", help="Decoder that replaces the model's own, e.g. for a style."
)
@click.option(
    "--uncertainty",
    metavar="MAP",
    type=click.Path(path_type=Path),
    help="Also write a grey image, bright where the file does not determine the decoded image; five times "
    "as slow.",
)
@click.option(
    "--keep-metadata",
    is_flag=True,
    help="Put the metadata of NAME.glc.meta into the image (PNG, WebP, TIFF), in its original colour space.",
)
@_shared_options
def decompress(
    inputs: tuple[str, ...],
    max_pixels: int,
    decoder: str | None,
    uncertainty: Path | None,
    keep_metadata: bool,
    output: str | None,
    model: str | None,
    device: str,
    precision: str,
    backend: str,
    memory: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Decode .glc files to images.

    IN is a .glc file, a folder (searched recursively), or - for standard input. A result is written next to
    its source, as NAME.png, or to OUT: a file for a single image, else a folder that reproduces the tree of
    the given folders. The suffix of a file OUT selects the lossless format. Without --model, each file is
    decoded with the known model that made it.
    """
    kind = Kind(f"{GLC_SUFFIX} files", lambda name: os.path.splitext(name)[1].lower() == GLC_SUFFIX, ".png")

    def check(job: Job) -> None:
        name, _ = _format_of(job.destination)
        if keep_metadata and (name not in WITH_METADATA or job.source is None):
            what = "standard input has no file beside it" if job.source is None else f"{name} cannot hold it"
            raise click.UsageError(f"--keep-metadata: {what}; decode a file to PNG, WebP or TIFF")

    jobs, failed = _plan(inputs, output, kind, force, check)
    if uncertainty is not None:
        _check_map(uncertainty, jobs, is_single(inputs), force)
    results: Iterable[tuple[Job, str | Exception]] = ()
    if jobs:
        from glc.cli.codecs import Codecs
        from glc.cli.metadata import Metadata
        from glc.codec.bitstream import unpack

        codecs = Codecs(model, device, precision, memory, decoder=decoder, backend=backend, files=len(jobs))
        codecs.check_for_files()
        maps: list[Image] = []

        def read(job: Job) -> tuple[bytes, Metadata]:
            data = read_glc(job.source, max_pixels)
            beside = sidecar(job.source) if keep_metadata and job.source is not None else None
            if beside is None or not beside.exists():
                return data, Metadata()
            name = click.format_filename(beside)
            return data, Metadata.from_bytes(beside.read_bytes(), data, name)

        def code(job: Job, found: tuple[bytes, Metadata]) -> tuple[tuple[Image, Metadata], str]:
            data, metadata = found
            header, _ = unpack(data, max_pixels)
            with notes_on(job.name):
                codec = codecs.for_file(header)
                if uncertainty is None:
                    image = codec.decompress(data, max_pixels=max_pixels)
                else:
                    result = codec.uncertainty(data, max_pixels=max_pixels)
                    image = result.image
                    maps.append(result.map)
            if keep_metadata and not metadata:
                say(f"{job.name}: note: no metadata was kept for it", sys.stderr)
            return (image, metadata), f"{image.width} x {image.height}"

        def write(job: Job, made: tuple[Image, Metadata]) -> None:
            data = _encoded(*made, job)
            if uncertainty is None:
                return write_result(job, data, force)
            with replacing(uncertainty) as partial:  # if the image cannot be written, neither is the map
                maps[0].save(partial, "PNG")
                write_result(job, data, force)

        def pixels(found: tuple[bytes, Metadata]) -> int:
            header, _ = unpack(found[0], max_pixels)
            return header.width * header.height

        limited = memory is not None or codecs.chosen() == "onnx"
        device_type = codecs.device_type()
        cores = cores_for(device_type, limited)
        results = outcomes(jobs, read, code, write, threads_for(device_type), cores, pixels)
    _report(results, len(jobs), failed, is_single(inputs), quiet)


def _check_map(path: Path, jobs: list[Job], single: bool, force: bool) -> None:
    """Refuse a map of uncertainty that cannot be written.

    Raises:
        click.UsageError: there are several inputs, or its name is not that of a PNG of its own.
        NothingDoneError: the file exists.
    """
    name = click.format_filename(path)
    if not single:
        raise click.UsageError("--uncertainty writes one map; give one file")
    if path.suffix.lower() != ".png":
        raise click.UsageError(f"--uncertainty {name}: the map is written as PNG; end its name in .png")
    if any(job.destination is not None and job.destination.absolute() == path.absolute() for job in jobs):
        raise click.UsageError(f"--uncertainty {name}: the name of the decoded image; choose another name")
    if path.exists() and not force:
        raise NothingDoneError(f"{name}: exists; replace it with --force")


def _plan(
    inputs: tuple[str, ...], output: str | None, kind: Kind, force: bool, check: Callable[[Job], object]
) -> tuple[list[Job], int]:
    """Return the jobs of a command and the number of inputs that cannot be processed, which are printed."""
    jobs, problems = find_jobs(inputs, output, kind, force)
    for job in jobs:
        check(job)
        if job.destination is None and sys.stdout.isatty():
            raise click.UsageError("standard output is a terminal; redirect it, or give a file with -o")
    for problem in problems:
        click.echo(problem, err=True)
    return jobs, len(problems)


def _report(
    results: Iterable[tuple[Job, str | Exception]], total: int, failed: int, single: bool, quiet: bool
) -> None:
    """Print each outcome as it arrives, beside a progress bar; exit with an error if any input failed."""
    # None: only on a terminal. In a log the bar would bury the messages.
    hidden = True if quiet or total < 2 else None
    with warnings_as_notes(), _bar(results, total, hidden) as shown:
        for job, outcome in shown:
            if isinstance(outcome, Exception):
                failed += 1
                say(message_about(job.name, outcome), sys.stderr)
            elif not quiet:
                # Data on standard output must not be mixed with messages.
                out = sys.stderr if job.destination is None else sys.stdout
                say(f"{job.name} -> {job.target}: {outcome}", out)
    if failed:
        raise click.exceptions.Exit(NOTHING_DONE if single else ONE_FAILED)


def _bar(results: Iterable[Any], total: int, hidden: bool | None) -> AbstractContextManager[Iterable[Any]]:
    """Return the context of a progress bar; without one, tqdm is not imported, which takes 50 ms."""
    if hidden:
        return nullcontext(results)
    from tqdm import tqdm

    bar: AbstractContextManager[Iterable[Any]] = tqdm(
        results, total=total, unit="file", disable=hidden, dynamic_ncols=True
    )
    return bar


def _reporter(quiet: bool) -> Reporter:
    from glc.data.images import Reporter

    return Reporter(lambda line: None if quiet else say(line, sys.stderr))


def _format_of(destination: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the format for a file's name; PNG for standard output and for names without a suffix."""
    suffix = destination.suffix.lower() if destination is not None else ""
    if (suffix or ".png") not in LOSSLESS:
        name = click.format_filename(str(destination))
        raise NothingDoneError(f"{name}: cannot write images as {suffix}; use one of {', '.join(LOSSLESS)}")
    return LOSSLESS[suffix or ".png"]


def _encoded(image: Image, metadata: Metadata, job: Job) -> bytes:

    from glc.data.images import png_bytes, srgb_to_profile

    name, options = _format_of(job.destination)
    if name == "PNG" and not metadata:
        return png_bytes(image)
    if metadata:
        metadata = metadata.for_upright()
        in_profile = srgb_to_profile(image, metadata.profile) if metadata.profile else None
        if in_profile is not None:
            image = in_profile
        elif metadata.profile:
            kept = "its ICC profile is not for RGB output and stays in the metadata file; the image is sRGB"
            say(f"{job.name}: note: {kept}", sys.stderr)
        profile = b"" if in_profile is None else metadata.profile
        options = options | metadata.save_options(name) | ({"icc_profile": profile} if profile else {})
    stream = io.BytesIO()
    try:
        image.save(stream, name, **options)
    except KeyError as error:
        raise ValueError(f"the installed Pillow cannot write {name}") from error
    return stream.getvalue()

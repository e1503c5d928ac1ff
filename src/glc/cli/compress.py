"""The commands `glc compress` and `glc decompress`."""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from glc.cli.errors import NOTHING_DONE, ONE_FAILED, NothingDoneError, message_about
from glc.cli.files import (
    Job,
    Kind,
    find_jobs,
    is_single,
    outcomes,
    read_glc,
    read_image,
    threads_for,
    write_result,
)
from glc.cli.options import (
    BACKENDS,
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

if TYPE_CHECKING:
    from PIL.Image import Image

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
@_shared_options
def compress(
    inputs: tuple[str, ...],
    quality: float | None,
    target_bpp: float | None,
    target_size: int | None,
    encoder: str | None,
    optimize_latent: int,
    lpips_weights: str | None,
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
        if job.destination is not None and is_image_name(job.destination.name):
            raise click.UsageError(
                f"{job.target}: has an image's suffix; compressed files end in {GLC_SUFFIX}"
            )

    jobs, failed = _plan(inputs, output, Kind("images", is_image_name, GLC_SUFFIX), force, check)
    results: Iterable[tuple[Job, str | Exception]] = ()
    if jobs:
        from glc.cli.codecs import Codecs, make_optimizer
        from glc.data.images import read_rgb

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

        def read(job: Job) -> Image:
            source = read_image(sys.stdin.buffer) if job.source is None else job.source
            return read_rgb(source, job.name)

        def code(job: Job, image: Image) -> tuple[bytes, str]:
            codec = codecs.for_images(image.width * image.height)
            with _notes(job):
                data = codec.compress(
                    image,
                    50 if quality is None else quality,
                    target_bpp=target_bpp,
                    target_size=target_size,
                    optimize_latent=optimizer,
                )
            return data, f"{len(data):,} bytes, {8 * len(data) / (image.width * image.height):.4f} bpp"

        def write(job: Job, data: bytes) -> None:
            write_result(job, data, force)

        results = outcomes(jobs, read, code, write, threads_for(codecs.device_type()))
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
@_shared_options
def decompress(
    inputs: tuple[str, ...],
    max_pixels: int,
    decoder: str | None,
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
    jobs, failed = _plan(inputs, output, kind, force, lambda job: _format_of(job.destination))
    results: Iterable[tuple[Job, str | Exception]] = ()
    if jobs:
        from glc.cli.codecs import Codecs
        from glc.codec.bitstream import unpack

        codecs = Codecs(model, device, precision, memory, decoder=decoder, backend=backend, files=len(jobs))
        codecs.check_for_files()

        def read(job: Job) -> bytes:
            return read_glc(job.source, max_pixels)

        def code(job: Job, data: bytes) -> tuple[Image, str]:
            header, _ = unpack(data, max_pixels)
            with _notes(job):
                image = codecs.for_file(header).decompress(data, max_pixels=max_pixels)
            return image, f"{image.width} x {image.height}"

        def write(job: Job, image: Image) -> None:
            write_result(job, _encoded(image, job.destination), force)

        results = outcomes(jobs, read, code, write, threads_for(codecs.device_type()))
    _report(results, len(jobs), failed, is_single(inputs), quiet)


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
    with warnings.catch_warnings(action="ignore"), _bar(results, total, hidden) as shown:
        for job, outcome in shown:
            if isinstance(outcome, Exception):
                failed += 1
                _write(message_about(job.name, outcome), sys.stderr)
            elif not quiet:
                # Data on standard output must not be mixed with messages.
                out = sys.stderr if job.destination is None else sys.stdout
                _write(f"{job.name} -> {job.target}: {outcome}", out)
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


def _write(text: str, file: TextIO) -> None:
    """Write a line, above the progress bar if there is one."""
    if "tqdm" not in sys.modules:
        print(text, file=file)
        return
    from tqdm import tqdm

    tqdm.write(text, file=file)


@contextmanager
def _notes(job: Job) -> Iterator[None]:
    """Print each warning about a target as a line on stderr; ignore other warnings."""
    from glc.codec.base import TargetWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TargetWarning)
        yield
    for warning in caught:
        _write(f"{job.name}: note: {warning.message}", sys.stderr)


def _format_of(destination: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the format for a file's name; PNG for standard output and for names without a suffix."""
    suffix = destination.suffix.lower() if destination is not None else ""
    if (suffix or ".png") not in LOSSLESS:
        name = click.format_filename(str(destination))
        raise NothingDoneError(f"{name}: cannot write images as {suffix}; use one of {', '.join(LOSSLESS)}")
    return LOSSLESS[suffix or ".png"]


def _encoded(image: Image, destination: Path | None) -> bytes:
    name, options = _format_of(destination)
    stream = io.BytesIO()
    try:
        image.save(stream, name, **options)
    except KeyError as error:
        raise ValueError(f"the installed Pillow cannot write {name}") from error
    return stream.getvalue()

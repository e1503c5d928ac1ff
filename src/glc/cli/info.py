"""The command `glc info`: headers of .glc files, and what reading does to images."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glc.cli.errors import NOTHING_DONE, ONE_FAILED, message_about
from glc.cli.files import STREAM, Job, is_single, read_glc, read_image, sidecar
from glc.cli.options import background_option
from glc.errors import NotGlcError

if TYPE_CHECKING:
    from glc.cli.codecs import KnownModel


@dataclass(frozen=True)
class Found:
    """What a file contains: as JSON, as lines of a label and a text, and as cells of a table."""

    values: dict[str, Any]
    lines: Sequence[tuple[str, str]]
    cells: Sequence[str]
    notes: Sequence[str] = field(default=())


HEADINGS = ("file", "content", "image", "bytes", "bpp", "model or colour")


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or a list for several files.")
@background_option
def info(files: tuple[str, ...], as_json: bool, background: str) -> None:
    """Show the headers of .glc files, and what `glc compress` would do to images.

    FILE is a .glc file, an image, a folder of these (searched recursively), or - for standard input. Several
    files are shown as a table. Needs no weights.
    """
    from glc.cli.codecs import known_models

    known = known_models()[0]
    found: list[Found] = []
    failed = 0
    for job in _jobs(files):
        if isinstance(job, str):
            click.echo(job, err=True)
            failed += 1
            continue
        try:
            found.append(_describe(job, known, background))
        except (ValueError, OSError, MemoryError) as error:
            click.echo(message_about(job.name, error), err=True)
            failed += 1
    if is_single(files):
        _print_one(found, as_json)
    elif as_json:
        click.echo(json.dumps([one.values for one in found], ensure_ascii=False))
    elif found:
        _print_table([one.cells for one in found])
    if failed:
        raise click.exceptions.Exit(NOTHING_DONE if is_single(files) else ONE_FAILED)


def _jobs(files: Sequence[str]) -> Iterator[Job | str]:
    """Yield the files, and a line for each folder without any."""
    for given in files:
        if given == STREAM or not os.path.isdir(given):
            yield Job(None if given == STREAM else Path(given), None)
            continue
        from glc.data.images import LeftOut, is_image_name, list_files

        name, left_out = click.format_filename(given), LeftOut()
        listed = list_files(
            Path(given), lambda name: name.lower().endswith(".glc") or is_image_name(name), None, left_out
        )
        yield from (Job(path, None) for path in listed)
        if not listed:
            yield f"{name}: folder contains no .glc files or images"
        if str(left_out):
            click.echo(f"{name}: note: {left_out}", err=True)


def _describe(job: Job, known: "list[KnownModel]", background: str) -> Found:
    from glc.codec.bitstream import MAX_SIDE

    if job.source is None:
        data = read_image(sys.stdin.buffer)
        return (
            _image(job, data, background)
            if not data.startswith(b"GLC"[: len(data)])
            else _glc(job, data, known)
        )
    if _may_be_glc(job.source.name):
        try:
            return _glc(job, read_glc(job.source, MAX_SIDE**2), known)
        except NotGlcError:
            if job.source.suffix == ".safetensors":
                raise ValueError("a weights file, not a .glc file; list models with `glc models`") from None
            if job.source.suffix.lower() == ".glc" or not job.source.stat().st_size:
                raise
    return _image(job, job.source, background)


def _may_be_glc(name: str) -> bool:
    """Whether a file name has no image's suffix."""
    if name.lower().endswith(".glc"):  # without reading images, which imports NumPy and Pillow
        return True
    from glc.data.images import is_image_name

    return not is_image_name(name)


def _glc(job: Job, data: bytes, known: "list[KnownModel]") -> Found:
    from glc.cli.codecs import model_of
    from glc.codec.bitstream import MAX_SIDE, RATE_ONE, VERSION, unpack

    header, _ = unpack(data, MAX_SIDE**2)
    model = model_of(header, known)
    beside = None if job.source is None else sidecar(job.source)
    metadata = beside.stat().st_size if beside is not None and beside.exists() else 0
    bpp = 8 * len(data) / (header.width * header.height)
    values = {
        "file": job.name,
        "version": VERSION,
        "width": header.width,
        "height": header.height,
        "rate_index": header.rate_index / RATE_ONE,
        "bytes": len(data),
        "bpp": bpp,
        "fingerprint": header.fingerprint.hex(),
        "model": model.name if model else None,
        **({"metadata_bytes": metadata} if metadata else {}),
    }
    of = f" of 0 to {len(model.rates) - 1}" if model else ""
    lines = [
        ("file", job.name),
        ("format", f"version {VERSION}"),
        ("image", f"{header.width} x {header.height} pixels"),
        ("rate index", f"{header.rate_index / RATE_ONE:.3f}{of}"),
        ("size", f"{len(data):,} bytes, {bpp:.4f} bpp"),
        ("weights", header.fingerprint.hex()),
        ("model", model.name if model else "unknown (no model in `glc models` has these weights)"),
        *([("metadata", f"{metadata:,} bytes beside it")] if metadata else []),
    ]
    cells = (
        *(job.name, f"glc {VERSION}", f"{header.width} x {header.height}", f"{len(data):,}", f"{bpp:.4f}"),
        model.name if model else f"unknown ({header.fingerprint.hex()})",
    )
    return Found(values, lines, cells)


def _image(job: Job, source: Path | bytes, background: str) -> Found:
    from glc.data.images import inspect, open_image

    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    about = inspect(open_image(source, job.name), job.name, background)
    bpp = 8 * size / (about.width * about.height)
    treatments = [treatment.text for treatment in about.treatments]
    values = {
        "file": job.name,
        "format": about.format,
        "mode": about.mode,
        "width": about.width,
        "height": about.height,
        "frames": about.frames,
        "bytes": size,
        "bpp": bpp,
        "colour": about.colour.source,
        "treatment": treatments,
    }
    lines = [
        ("file", job.name),
        ("format", f"{about.format}, {about.mode}"),
        ("image", f"{about.width} x {about.height} pixels"),
        ("size", f"{size:,} bytes, {bpp:.4f} bpp"),
        ("colour", about.colour.source),
        *[("treatment", text) for text in treatments or ["none"]],
    ]
    image = f"{about.width} x {about.height}"
    what = "; ".join(treatments) or about.colour.source
    return Found(values, lines, (job.name, about.format, image, f"{size:,}", f"{bpp:.4f}", what))


def _print_one(found: Sequence[Found], as_json: bool) -> None:
    for one in found:
        if as_json:
            click.echo(json.dumps(one.values, ensure_ascii=False))
            continue
        for label, value in one.lines:
            click.echo(f"{label:<12}{value}")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    table = [HEADINGS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    for row in table:
        cells = [cell.rjust(width) if i in (3, 4) else cell.ljust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        click.echo("  ".join(cells).rstrip())

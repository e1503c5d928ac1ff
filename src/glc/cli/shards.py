"""`--shards` of `glc compress` and `glc decompress`: collections instead of single files."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glc import __version__
from glc.cli.errors import ONE_FAILED, NothingDoneError, message
from glc.cli.latent_search import check_effort, make_effort

if TYPE_CHECKING:
    from glc.codec.codec import Codec
    from glc.jobs.worker import Coded, Coder

UNFINISHED = 3
"""Exit code of a collection that the same command goes on with."""


def shard_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--shards` and what belongs to it to a command, which does without where it is not given."""

    @functools.wraps(command)
    def either(*, shards: bool, keep: bool, processes: int, threads: int, **given: Any) -> None:
        if shards:
            code_shards(command.__name__, keep=keep, processes=processes, threads=threads, **given)
            return
        only = {"keep": (keep, False), "processes": (processes, 1), "threads": (threads, 1)}
        for name, (value, default) in only.items():
            if value != default:
                raise click.UsageError(f"--{name} goes with --shards")
        command(**given)

    for option in (
        click.option(
            "--threads", type=click.IntRange(min=1), default=1, help="With --shards: of each process."
        ),
        click.option(
            "--processes", type=click.IntRange(min=1), default=1, help="With --shards: on this machine."
        ),
        click.option("--keep", is_flag=True, help="With --shards: a sample's other files go along."),
        click.option(
            "--shards",
            is_flag=True,
            help="IN are tar shards: files, folders, patterns like 'in-{000..099}.tar'. So is what OUT gets.",
        ),
    ):
        either = option(either)
    return either


def code_shards(
    command: str,
    *,
    inputs: tuple[str, ...],
    output: str | None,
    model: str | None,
    device: str,
    force: bool,
    quiet: bool,
    keep: bool,
    processes: int,
    threads: int,
    quality: float | None = None,
    target_bpp: float | None = None,
    target_size: int | None = None,
    max_pixels: int | None = None,
    effort: int = 0,
    lpips_weights: str | None = None,
    **parts: Any,
) -> None:
    """Code the samples of shards; what the arguments mean is said where they are options.

    Raises:
        click.ClickException: it could not be started.
        click.exceptions.Exit: 1 when samples failed, 3 when it is not finished.
    """
    from glc.codec.weights.catalog import DEFAULT_MODEL
    from glc.jobs.manifest import FAILURES
    from glc.jobs.run import UnfinishedError, run
    from glc.jobs.tar_shards import find_shards
    from glc.jobs.worker import Task

    began = time.time()
    if output is None or output == "-":
        raise click.UsageError("--shards needs the folder to write to: -o OUT")
    if sum(value is not None for value in (quality, target_bpp, target_size)) > 1:
        raise click.UsageError("give only one of --quality, --target-bpp and --target-size")
    check_effort(effort, lpips_weights, parts.get("encoder"))
    make_effort(effort, lpips_weights)  # what cannot be had is known before a process starts
    if command == "compress" and quality is None and target_bpp is None and target_size is None:
        quality = 50
    options: dict[str, Any] = {"quality": quality, "target_bpp": target_bpp, "target_size": target_size}
    options = {k: v for k, v in {**options, "max_pixels": max_pixels}.items() if v is not None}
    if effort:
        options["effort"] = effort
    folder = Path(output)
    try:
        found = find_shards(inputs)
        for shard in found:
            if os.path.realpath(shard.path) == os.path.realpath(folder / shard.name):
                raise ValueError(f"{shard.path} would be written over: choose another folder with -o")
        if not any(shard.path.exists() for shard in found):
            raise ValueError(f"{found[0].path}: no such file; none of {len(found)} shards is there")
        weights = {"model": model or (DEFAULT_MODEL if command == "compress" else None), **parts}
        weights.pop("memory", None)  # decides no byte: what lacks some goes on with more
        settings = {
            "command": command,
            "glc": __version__,
            **options,
            "weights": {key: _identity(key, value) for key, value in weights.items()},
        }
        totals = run(
            Task(found, folder, keep),
            settings,
            MakeCoder(command, model, device, options, parts, processes, lpips_weights),
            processes=processes,
            threads=threads,
            force=force,
            quiet=quiet,
            began=began,
        )
    except UnfinishedError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(UNFINISHED) from None
    except (ValueError, OSError) as error:
        raise NothingDoneError(message(error)) from error
    if not quiet:
        bpp = f", {totals['bpp']:.4f} bpp" if totals["bpp"] is not None else ""
        click.echo(
            f"{click.format_filename(folder)}: {totals['done']:,} of {totals['samples']:,} samples in "
            f"{totals['shards']:,} shards, {totals['coded_bytes']:,} bytes{bpp}"
        )
    if totals["failed"] or totals["broken_shards"]:
        click.echo(
            f"{totals['failed']:,} samples failed, {totals['broken_shards']:,} shards could not be read "
            f"to their end: {click.format_filename(folder / FAILURES)} says why",
            err=True,
        )
        raise click.exceptions.Exit(ONE_FAILED)


def _identity(key: str, value: Any) -> Any:
    """Return what tells a weights file from another of the same name: its hash; other values as they are.

    Raises:
        WeightsError: there is no such file. Known here, it is no reason to begin.
        OSError: it cannot be read.
    """
    from glc.codec.weights.catalog import find

    if value is None or key not in ("model", "encoder", "decoder"):
        return value
    with open(find(value, key), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class MakeCoder:
    """Makes the coder of a process; travels to it."""

    command: str
    model: str | None
    device: str
    options: Mapping[str, Any]
    parts: Mapping[str, Any]
    processes: int
    lpips_weights: str | None = None

    def __call__(self, here: int) -> Coder:
        """Load the model, on this process's device where there are several."""
        from glc.cli.codecs import Codecs

        codecs = Codecs(self.model, self._device(here), **self.parts)
        if self.command == "compress":
            search = make_effort(self.options.get("effort", 0), self.lpips_weights)
            return Compressor(codecs.for_pictures(), {**self.options, "effort": search})
        codecs.check_for_files()
        return Decompressor(codecs, self.options)

    def _device(self, here: int) -> str:
        import torch

        from glc.jobs.run import place_here

        if self.device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
            return self.device
        return f"cuda:{place_here(here, self.processes) % torch.cuda.device_count()}"


@dataclass
class Compressor:
    """Pictures to `.glc` files."""

    codec: Codec
    options: Mapping[str, Any]

    def accepts(self, name: str) -> bool:
        """Whether it is a picture."""
        from glc.data.images import is_image_name

        return is_image_name(name)

    def code(self, data: bytes, name: str) -> Coded:
        """Compress a picture."""
        from glc.data.images import read_rgb
        from glc.jobs.worker import Coded

        image = read_rgb(data, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a target that was not reached is no failure
            coded = self.codec.compress(image, **self.options)
        return Coded([("glc", coded)], image.width * image.height, len(coded))


@dataclass
class Decompressor:
    """`.glc` files to PNG."""

    codecs: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def accepts(self, name: str) -> bool:
        """Whether it is a `.glc` file."""
        return os.path.splitext(name)[1].lower() == ".glc"

    def code(self, data: bytes, name: str) -> Coded:
        """Decompress a file."""
        from glc.codec.bitstream import unpack
        from glc.jobs.worker import Coded

        header, _ = unpack(data, **self.options)
        picture = self.codecs.for_file(header).decompress(data, **self.options)
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return Coded([("png", stream.getvalue())], picture.width * picture.height, len(data))

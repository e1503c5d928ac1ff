"""`--shards` of `glc compress` and `glc decompress`: tar shards instead of single files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from glc import __version__
from glc.cli.errors import ONE_FAILED, NothingDoneError, message
from glc.cli.options import check_latent_options, check_target

if TYPE_CHECKING:
    from glc.jobs.engines import Engine
    from glc.jobs.worker import FileProcessor

_OPTIONS = ("quality", "target_bpp", "target_size", "max_pixels")
"""Options of a command that are arguments of each call of the codec."""


class _Part(click.ParamType):
    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        first, _, count = value.partition("/")
        if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
            self.fail(f"{value!r} is not I/N with 0 <= I < N, such as 0/64", param, ctx)
        return int(first), int(count)


_AMOUNT = click.FloatRange(min=0, min_open=True)
_ENGINE_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="With --shards: processes of this machine, or Ray, also on many (docs/scaling.md).",
    ),
    click.option(
        "--processes", type=click.IntRange(min=1), default=1, help="With --shards: processes on this machine."
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), default=1, help="With --shards: threads per process."
    ),
    click.option("--ray-cpus", type=_AMOUNT, help="With --engine ray: CPUs per shard.  [default: --threads]"),
    click.option(
        "--ray-gpus", type=click.FloatRange(min=0), help="GPUs per shard.  [default: 1 if there are any]"
    ),
    click.option("--ray-memory", type=_AMOUNT, metavar="GB", help="Memory to reserve per shard."),
    click.option(
        "--part", type=_Part(), default=(0, 1), help="With --shards: one of N parts, for a job array."
    ),
)
_SHARD_OPTIONS = (
    click.option(
        "--shards",
        is_flag=True,
        help="IN are tar shards: files, folders, URLs, patterns like 'in-{000..099}.tar'. OUT gets shards.",
    ),
    click.option("--keep", is_flag=True, help="With --shards: copy the other files of each sample."),
    click.option(
        "--image-member",
        metavar="SUFFIX",
        help="With --shards: code the file KEY.SUFFIX of each sample.  [default: the first that fits]",
    ),
    click.option(
        "--retry-failures", is_flag=True, help="With --shards: process the failed samples of a finished job."
    ),
    *_ENGINE_OPTIONS,
)


def shard_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--shards` and its options to a command; without `--shards` the command runs unchanged."""

    @functools.wraps(command)
    @click.pass_context
    def either(ctx: click.Context, *, output: str | None, **given: Any) -> None:
        own = {name: given.pop(name) for name in ("shards", "keep", "image_member", "retry_failures")}
        engine = {name: given.pop(name) for name in _ENGINE_NAMES}
        if not own["shards"]:
            for name in (*own, *engine):
                if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                    raise click.UsageError(f"--{name.replace('_', '-')}: requires --shards")
            command(output=output, **given)
            return
        if output is None or output == "-":
            raise click.UsageError("--shards: no output folder; give one with -o OUT")
        inputs, force, quiet = (given.pop(name) for name in ("inputs", "force", "quiet"))
        keep, member = own["keep"], own["image_member"]
        job = make_job(command.__name__, keep=keep, member=member, **given)
        options = {"force": force, "retry": own["retry_failures"], "quiet": quiet}
        code_shards(job, inputs, output, make_engine(**engine, device=given["device"]), options)

    for option in reversed(_SHARD_OPTIONS):
        either = option(either)
    return either


_ENGINE_NAMES = ("engine", "processes", "threads", "ray_cpus", "ray_gpus", "ray_memory", "part")


def make_engine(
    *,
    engine: str,
    processes: int,
    threads: int,
    ray_cpus: float | None,
    ray_gpus: float | None,
    ray_memory: float | None,
    part: tuple[int, int],
    device: str,
) -> Engine:
    """Return the engine of a command's options."""
    if engine == "ray" and processes > 1:
        raise click.UsageError("--processes: Ray starts as many as fit; limit them with --ray-cpus")
    if engine != "ray" and (ray_cpus or ray_gpus is not None or ray_memory):
        raise click.UsageError("--ray-cpus, --ray-gpus, --ray-memory: require --engine ray")
    gpus = 0 if device == "cpu" and ray_gpus is None else ray_gpus
    memory = None if ray_memory is None else int(ray_memory * 1e9)
    from glc.jobs.engines import Engine

    return Engine(engine, processes, threads, ray_cpus, gpus, memory, part)


@dataclass(frozen=True)
class CodingJob:
    """Settings of a batch job; calling it in a worker process makes the sample processor."""

    command: str
    """`compress` or `decompress`."""
    model: str | None
    device: str
    keep: bool
    member: str | None
    options: Mapping[str, Any]
    """Of each call: quality or target, `optimize_latent`, `max_pixels`; options not given are absent."""
    networks: Mapping[str, Any]
    """Other arguments of `Codecs`, such as `encoder` and `memory`."""
    lpips_weights: str | None = None
    background: str = "white"

    def settings(self) -> dict[str, Any]:
        """Return every setting that affects the output bytes.

        Raises:
            WeightsError: a weights file does not exist.
            OSError: a weights file cannot be read.
        """
        from glc.codec.weights.catalog import DEFAULT_MODEL

        weights = {"model": self.model or (DEFAULT_MODEL if self.command == "compress" else None)}
        weights |= self.networks
        weights.pop("memory", None)  # does not affect the bytes: a job may resume with another limit
        identities = {key: _identity(key, value) for key, value in weights.items()}
        found = {"command": self.command, "glc": __version__, **self.options, "weights": identities}
        if self.background != "white":
            found["background"] = self.background
        member = {} if self.member is None else {"image_member": self.member}
        return {**found, "keep": self.keep, **member}

    def __call__(self, local_rank: int) -> FileProcessor:
        """Load the model, on the GPU of this local rank if there are several."""
        from glc.cli.codecs import Codecs, make_optimizer
        from glc.cli.shard_files import Compressor, Decompressor
        from glc.codec.load import choose_backend

        device = self.device
        if device in ("auto", "cuda") and choose_backend(self.networks.get("backend", "auto")) == "torch":
            import torch

            if torch.cuda.device_count() > 1:
                device = f"cuda:{local_rank % torch.cuda.device_count()}"
        codecs = Codecs(self.model, device, **self.networks)
        if self.command == "compress":
            optimizer = make_optimizer(self.options.get("optimize_latent", 0), self.lpips_weights)
            options = {**self.options, "optimize_latent": optimizer}
            codec = codecs.for_images()
            return Compressor(codec, options, self.background, keep=self.keep, member=self.member)
        codecs.check_for_files()
        return Decompressor(codecs, self.options, keep=self.keep, member=self.member)


def make_job(
    command: str,
    *,
    model: str | None,
    device: str,
    keep: bool,
    member: str | None,
    optimize_latent: int = 0,
    lpips_weights: str | None = None,
    background: str = "white",
    keep_metadata: bool = False,
    roi: str | None = None,
    uncertainty: Path | None = None,
    **given: Any,
) -> CodingJob:
    """Check the options of a command and return them as a job.

    Raises:
        click.UsageError: two options exclude each other.
        NothingDoneError: `optimize_latent` needs a package or weights that are missing.
    """
    if keep_metadata:
        raise click.UsageError("--keep-metadata: not with --shards, whose samples have no place for it")
    if roi is not None or uncertainty is not None:
        option = "--uncertainty" if roi is None else "--roi"
        raise click.UsageError(f"{option}: not with --shards; it is for single images")
    options = {name: given.pop(name) for name in _OPTIONS if name in given}
    if command == "compress":
        check_target(**options)
        check_latent_options(optimize_latent, lpips_weights, given["encoder"])
        if optimize_latent:  # a missing package is reported before a process starts
            from glc.cli.codecs import make_optimizer

            make_optimizer(optimize_latent, lpips_weights)
        if not any(value is not None for value in options.values()):
            options["quality"] = 50
    asked = {name: value for name, value in options.items() if value is not None}
    if optimize_latent:
        asked["optimize_latent"] = optimize_latent
    return CodingJob(command, model, device, keep, member, asked, given, lpips_weights, background)


def code_shards(
    job: CodingJob, inputs: tuple[str, ...], folder: str, engine: Engine, options: Mapping[str, Any]
) -> None:
    """Process the samples of tar shards into a folder.

    Args:
        options: `force`, `retry` and `quiet`, as of `run_shards`.

    Raises:
        click.ClickException: the job could not be started.
        click.exceptions.Exit: 1 when samples failed, 3 when the job is unfinished.
    """
    from glc.jobs.manifest import FAILURES
    from glc.jobs.run import UNFINISHED, PartFinished, UnfinishedError
    from glc.jobs.tar_shards import find_shards, refuse_overwriting
    from glc.jobs.worker import run_shards

    try:
        shards = find_shards(inputs)
        refuse_overwriting(shards, folder, "choose another folder with -o")
        if not any(shard.stamp() for shard in shards):
            raise ValueError(f"{shards[0].path}: no such file; none of the {len(shards)} shards exists")
        _, totals = run_shards(shards, folder, job.settings(), job, engine, **options)
    except PartFinished as done:
        click.echo(str(done))
        return
    except UnfinishedError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(UNFINISHED) from None
    except (ValueError, OSError) as error:
        raise NothingDoneError(message(error)) from error
    name = click.format_filename(folder)
    if not options["quiet"]:
        bpp = f", {totals['bpp']:.4f} bpp" if totals["bpp"] is not None else ""
        click.echo(
            f"{name}: {totals['done']:,} of {totals['samples']:,} samples in {totals['shards']:,} shards, "
            f"{totals['coded_bytes']:,} bytes{bpp}"
        )
    if totals["failed"] or totals["broken_shards"]:
        click.echo(
            f"{totals['failed']:,} samples failed, {totals['broken_shards']:,} shards truncated or corrupt; "
            f"see {name.rstrip('/')}/{FAILURES}",
            err=True,
        )
        raise click.exceptions.Exit(ONE_FAILED)


def _identity(key: str, value: Any) -> Any:
    """Return the SHA-256 of a weights file, to tell files of one name apart; return other values."""
    from glc.codec.weights.catalog import find

    if value is None or key not in ("model", "encoder", "decoder"):
        return value
    with open(find(value, key), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

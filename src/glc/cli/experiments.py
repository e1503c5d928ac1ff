"""Commands of experiments: `glc pack`, `train`, `eval`, `report`, `dashboard` and `complexity`."""

import json
import re
from pathlib import Path
from typing import Any

import click

from glc.cli.errors import needs
from glc.cli.options import background_option, quiet_option, renamed_option, trust_option

_hydra_arguments = click.argument("arguments", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)
_HYDRA: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
"""Settings of commands that Hydra configures: its own flags, such as `-m` and `--cfg job`, pass through."""


class _Configured(click.Command):
    """A command whose help is written by `glc.launch.help`."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, with the options of this command."""
        from glc.launch.help import help_text

        formatter = ctx.make_formatter()
        self.format_options(ctx, formatter)
        return f"{help_text(self._config_name, f'glc {self.name}')}\n\n{formatter.getvalue()}"

    @property
    def _config_name(self) -> str:
        return "evaluate" if self.name == "eval" else "train"


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--samples",
    type=click.Choice(["train", "test"]),
    help="Pack the sample photographs of installed packages.",
)
@click.option(
    "--size", type=click.IntRange(min=1), help="Downscale images to this short side in pixels; never upscale."
)
@click.option(
    "--min-side", type=click.IntRange(min=0), default=0, help="Skip images with a smaller short side."
)
@click.option(
    "--per-shard", type=click.IntRange(min=1), default=1000, show_default=True, help="Images per shard."
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="JPEG quality of re-encoded images.",
)
@click.option(
    "--keep-order",
    is_flag=True,
    help="Keep the order of the sources.  [default: shuffled by a hash of the name]",
)
@background_option
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: one per core]")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Processes of this machine, or Ray, also on many (docs/scaling.md).",
)
@click.option("--force", is_flag=True, help="Replace shards of other settings or images.")
@quiet_option
def pack(
    sources: tuple[Path, ...],
    dest: Path,
    samples: str | None,
    size: int | None,
    min_side: int,
    per_shard: int,
    quality: int,
    keep_order: bool,
    background: str,
    workers: int | None,
    engine: str,
    force: bool,
    quiet: bool,
) -> None:
    """Pack images into WebDataset shards DEST/NAME-000000.tar and a manifest.

    Each SOURCE is a folder, a text file that lists images, or an image. To resume an interrupted run, give
    the same command again.
    """
    if bool(sources) == bool(samples):
        raise click.UsageError("give either SOURCE... DEST, or --samples train|test DEST")
    from glc.data.pack import pack as pack_images

    if samples:
        from glc.data.sources import sample_paths

        sources = tuple(sample_paths(samples))  # type: ignore[arg-type]
    manifest = pack_images(
        sources,
        dest,
        images_per_shard=per_shard,
        size=size,
        min_side=min_side,
        quality=quality,
        background=background,
        mix=not keep_order,
        workers=workers,
        engine=engine,
        force=force,
        progress=not quiet,
    )
    for image in manifest.skipped:
        click.echo(f"skipped {image['name']}: {image['reason']}", err=True)
    if not quiet:
        shards = f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}"
        skipped = f", {len(manifest.skipped)} skipped" if manifest.skipped else ""
        click.echo(f"{dest}: {manifest.count} images in {shards}, {manifest.bytes / 1e6:.1f} MB{skipped}")


@click.command("train", cls=_Configured, context_settings=_HYDRA)
@_hydra_arguments
@trust_option
def train(arguments: tuple[str, ...]) -> None:
    """Train a stage of a codec."""
    with needs("train", "hydra", "torchvision", "torchmetrics", "lpips", "webdataset"):
        from glc.launch.commands import train as main

        main(arguments, program="glc train")


@click.command("eval", cls=_Configured, context_settings=_HYDRA)
@click.option(
    "--shards",
    multiple=True,
    metavar="PATTERN",
    help="Tar shards of images: a file, a folder, or a pattern like 'val-{000..099}.tar'. Repeatable.",
)
@_hydra_arguments
@trust_option
def evaluate(arguments: tuple[str, ...], shards: tuple[str, ...]) -> None:
    """Evaluate codecs on a folder of images or a test set."""
    unnamed = shards and not any(word.startswith("testset=") for word in arguments)
    with needs("eval", "hydra", "torchvision", "torchmetrics", "lpips"):
        from glc.launch.commands import evaluate as main

        main([*arguments, *(["testset=shards"] if unnamed else [])], shards, program="glc eval")


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write.",
)
@click.option(
    "--originals",
    type=click.Path(path_type=Path),
    help="Folder of the original images, shown beside the decoded ones.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Maximum number of images in the slider.",
)
@click.option(
    "--tables",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for plots (PNG, SVG) and tables (Markdown, LaTeX).",
)
@click.option("--published/--no-published", default=True, help="Plot published results, if there are any.")
@click.option(
    "--anchor", metavar="CODEC", help="Codec that BD-rates are relative to.  [default: that of the first RUN]"
)
@click.option(
    "--watch", is_flag=True, help="Rewrite the page while runs train, and have it reload; Ctrl-C ends."
)
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Period of --watch.",
)
@renamed_option("--pictures", "--images")
def report(
    runs: tuple[Path, ...],
    output: Path,
    originals: Path | None,
    images: int,
    tables: Path | None,
    published: bool,
    anchor: str | None,
    watch: bool,
    every: float,
) -> None:
    """Write a self-contained HTML report.

    Each RUN is the out= folder of an evaluation, or a folder with training runs, such as runs/NAME.
    """
    with needs("eval"):
        from glc.evaluation.combined_report import Report
        from glc.evaluation.report import write_tables

    made = Report(runs, output, originals, images, published, anchor)
    if watch and not made.training:
        raise click.UsageError("--watch needs a folder with training runs, such as runs/NAME")
    if tables is not None:
        if not made.evaluations:
            raise click.UsageError("--tables needs an evaluation; give its out= folder as a RUN")
        write_tables(made.evaluations, tables, published, anchor)
    size = made.write(every if watch else None)
    click.echo(f"{click.format_filename(output)}: {size / 1e6:.1f} MB")
    if watch:
        try:
            made.watch(every, lambda text: click.echo(text, err=True))
        except KeyboardInterrupt:
            made.write()


@click.command()
@click.argument("project", metavar="ENTITY/PROJECT")
@click.option(
    "--dry-run", is_flag=True, help="Print what would be sent, as JSON; needs no network and no account."
)
def dashboard(project: str, dry_run: bool) -> None:
    """Make or update a W&B workspace for the runs of a project, and a report if there is none.

    The workspace has sections for each stage and for sweeps. ENTITY is a user or a team. Changes made by hand
    to the workspace `glc` are replaced; save them as another one. An existing report is left as it is.
    """
    entity, _, name = project.partition("/")
    if not entity or not name or "/" in name:
        raise click.UsageError(f"{project}: not ENTITY/PROJECT; give, for example, me/glc")
    with needs("train", "lightning", "wandb"), needs("dashboard", "wandb_workspaces"):
        from glc.launch.dashboard import save, specification

    if dry_run:
        click.echo(json.dumps(specification(entity, name), indent=1))
        return
    save(entity, name)


def _size(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[tuple[int, int]]:
    sizes = []
    for text in value:
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
        if found is None or int(found[1]) == 0 or int(found[2]) == 0:
            raise click.BadParameter(f"invalid size {text!r}; give WIDTHxHEIGHT, e.g. 768x512")
        sizes.append((int(found[1]), int(found[2])))
    return list(dict.fromkeys(sizes))


@click.command()
@click.argument("model", metavar="NAME|FILE")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WxH",
    callback=_size,
    default=("256x256", "768x512", "1920x1080"),
    show_default=True,
    help="Width and height of an image. Repeatable.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="cpu|cuda",
    help="Device to measure on. Repeatable.  [default: all available]",
)
@click.option("--quality", type=click.FloatRange(0, 100), default=50, show_default=True)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of timed calls; the median is reported.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for complexity.md and complexity.json.",
)
@trust_option
def complexity(
    model: str,
    sizes: list[tuple[int, int]],
    devices: tuple[str, ...],
    quality: float,
    repeats: int,
    output: Path | None,
) -> None:
    """Measure a model's complexity: parameters, MACs, time and memory per image size and device."""
    from glc.codec.codec import load

    with needs("eval"):
        from glc.evaluation.complexity import (
            Complexity,
            devices_present,
            macs_by_part,
            measure,
            name_of,
            parameters_by_part,
            to_markdown,
        )
        from glc.io.atomic import write_text

    measurements = []
    codec = None
    for device in dict.fromkeys(devices or devices_present()):
        codec = load(model, device)
        for size in sizes:
            click.echo(f"{device}, {name_of(size)}", err=True)
            measurements.append(measure(codec, size, quality, repeats))
    assert codec is not None
    found = Complexity(
        model=Path(model).name,
        fingerprint=codec.weights.fingerprint,
        quality=quality,
        parameters=parameters_by_part(codec.model),
        macs={name_of(size): macs_by_part(codec.model, size) for size in sizes},
        measurements=measurements,
    )
    text = to_markdown(found)
    if output is not None:
        write_text(output / "complexity.md", text)
        write_text(output / "complexity.json", json.dumps(found.to_json(), indent=2) + "\n")
    click.echo(text, nl=False)

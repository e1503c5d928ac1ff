"""The `glc` command.

Each command imports what it needs when it runs, so that `glc --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from glc import __version__


class _Commands(click.Group):
    """Turns an error with a message for the user into one line and exit code 1 (usage errors: 2)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click's own; some of them are RuntimeErrors
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            message = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, OSError) and error.filename is not None and error.strerror:
                message = f"{error.filename}: {error.strerror}"
            raise click.ClickException(message) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glc")
def main() -> None:
    """Generative Latent Coding: an image codec for ultra-low bitrates, and the tools to train it."""


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("destination", type=click.Path(path_type=Path))
def export(checkpoint: Path, destination: Path) -> None:
    """Write a training CHECKPOINT's codec as a weights file DESTINATION (.safetensors).

    CHECKPOINT may be the folder of a training run; its last checkpoint is taken.
    """
    from glc.codec.export import export as write

    last = checkpoint / "checkpoints" / "last.ckpt"
    write(last if checkpoint.is_dir() else checkpoint, destination)


@main.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--samples", type=click.Choice(["train", "test"]), help="Pack the photographs inside installed packages."
)
@click.option(
    "--size", type=click.IntRange(min=1), help="Scale down to this short side, in pixels; never up."
)
@click.option(
    "--min-side", type=click.IntRange(min=0), default=0, help="Skip pictures with a smaller short side."
)
@click.option(
    "--per-shard", type=click.IntRange(min=1), default=1000, show_default=True, help="Pictures per shard."
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="JPEG quality of changed pictures.",
)
@click.option(
    "--keep-order", is_flag=True, help="Keep the order of the sources (default: mixed by a hash of the name)."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; by default one per core.")
@click.option("--force", is_flag=True, help="Replace shards packed with other settings or pictures.")
@click.option("--quiet", is_flag=True, help="No progress bar and no summary.")
def pack(
    sources: tuple[Path, ...],
    dest: Path,
    samples: str | None,
    size: int | None,
    min_side: int,
    per_shard: int,
    quality: int,
    keep_order: bool,
    workers: int | None,
    force: bool,
    quiet: bool,
) -> None:
    """Pack pictures into WebDataset shards DEST/NAME-000000.tar and a manifest.

    Each SOURCE is a folder, a text file that lists pictures, or a picture. An interrupted run, started again,
    goes on where it stopped.
    """
    if bool(sources) == bool(samples):
        raise click.UsageError("give either SOURCE... DEST, or --samples train|test DEST")
    from glc.data.pack import pack as pack_pictures

    if samples:
        from glc.data.samples import sample_paths

        sources = tuple(sample_paths(samples))  # type: ignore[arg-type]
    manifest = pack_pictures(
        sources,
        dest,
        images_per_shard=per_shard,
        size=size,
        min_side=min_side,
        quality=quality,
        mix=not keep_order,
        workers=workers,
        force=force,
        progress=not quiet,
    )
    for picture in manifest.skipped:
        click.echo(f"skipped {picture['name']}: {picture['reason']}", err=True)
    if not quiet:
        shards = f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}"
        skipped = f", {len(manifest.skipped)} skipped" if manifest.skipped else ""
        click.echo(f"{dest}: {manifest.count} pictures in {shards}, {manifest.bytes / 1e6:.1f} MB{skipped}")

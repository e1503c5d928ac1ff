"""The command `glc pack`."""

from pathlib import Path

import click


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
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: one per core]")
@click.option("--force", is_flag=True, help="Replace shards of other settings or images.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
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
        mix=not keep_order,
        workers=workers,
        force=force,
        progress=not quiet,
    )
    for image in manifest.skipped:
        click.echo(f"skipped {image['name']}: {image['reason']}", err=True)
    if not quiet:
        shards = f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}"
        skipped = f", {len(manifest.skipped)} skipped" if manifest.skipped else ""
        click.echo(f"{dest}: {manifest.count} images in {shards}, {manifest.bytes / 1e6:.1f} MB{skipped}")

"""The commands around training: `glc pack` before it, `glc export` after it."""

from pathlib import Path

import click

from glc.cli.trust import trust_option


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--half", is_flag=True, help="Store the weights in half precision: half the file.")
@click.option(
    "--photos",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Pictures like those to be compressed: a folder, a text file that lists them, or a picture. On them "
    "the frequencies of the hyper code are counted, which shortens files. May be given several times.",
)
@click.option(
    "--training",
    is_flag=True,
    help="Write what training needs besides the codec instead: C, code predictor, E_VQ and discriminator, "
    "for init_from=[CODEC,DESTINATION].",
)
@trust_option
@click.option("--force", is_flag=True, help="Replace DESTINATION where it exists.")
def export(
    checkpoint: Path, destination: Path, half: bool, photos: tuple[Path, ...], training: bool, force: bool
) -> None:
    """Write a training CHECKPOINT's codec as a weights file DESTINATION (.safetensors).

    CHECKPOINT may be the folder of a training run; its last checkpoint is taken.
    """
    if training and photos:
        raise click.UsageError("--training writes no codec, which --photos are counted for")
    from tqdm import tqdm

    from glc.codec.weights.export import export as write
    from glc.codec.weights.export import export_companion
    from glc.data.sources import list_sources
    from glc.io.atomic import check_destination

    if checkpoint.is_dir():
        checkpoint = checkpoint / "checkpoints" / "last.ckpt"
    check_destination(destination, checkpoint, force)
    if training:
        click.echo(f"{destination}: {', '.join(export_companion(checkpoint, destination, half))}")
        return
    pictures = [path for _, path in list_sources(photos)] if photos else []
    with tqdm(pictures, desc="counting", unit="pic", disable=None if pictures else True) as counted:
        write(checkpoint, destination, half, counted)


@click.command()
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
        from glc.data.sources import sample_paths

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

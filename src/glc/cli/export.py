"""The command `glc export`."""

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
    help="Images like those to be compressed: a folder, a text file that lists them, or an image. On them "
    "the frequencies of the hyper-latent are counted, which shortens files. May be given several times.",
)
@click.option(
    "--training",
    is_flag=True,
    help="Write what training needs besides the codec instead: C, code predictor, E_VQ and discriminator, "
    "for init_from=[CODEC,DESTINATION].",
)
@click.option("--force", is_flag=True, help="Replace DESTINATION where it exists.")
@trust_option
def export(
    checkpoint: Path, destination: Path, half: bool, photos: tuple[Path, ...], training: bool, force: bool
) -> None:
    """Write a training CHECKPOINT's codec as a weights file DESTINATION (.safetensors).

    CHECKPOINT may be the folder of a training run; its last checkpoint is taken.
    """
    if training and photos:
        raise click.UsageError("--photos only applies to a codec: omit it with --training")
    from tqdm import tqdm

    from glc.codec.weights.export import export as write
    from glc.codec.weights.export import export_training_weights
    from glc.data.sources import list_sources
    from glc.io.atomic import check_destination

    if checkpoint.is_dir():
        checkpoint = checkpoint / "checkpoints" / "last.ckpt"
    check_destination(destination, checkpoint, force)
    if training:
        click.echo(f"{destination}: {', '.join(export_training_weights(checkpoint, destination, half))}")
        return
    images = [path for _, path in list_sources(photos)] if photos else []
    with tqdm(images, desc="counting", unit="image", disable=None if images else True) as counted:
        write(checkpoint, destination, half, counted)

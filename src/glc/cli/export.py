"""The command `glc export`."""

from pathlib import Path

import click

from glc.cli.errors import renamed_option
from glc.cli.trust import trust_option


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--half", is_flag=True, help="Store the weights in half precision, which halves the file.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Images to count the hyper-latent's codewords on, which makes files smaller: a folder, a text file "
    "that lists images, or an image. Use images like those to be compressed. Repeatable.",
)
@click.option(
    "--training",
    is_flag=True,
    help="Write the training weights instead: codebook C, code predictor, E_VQ and discriminator, for "
    "init_from=[CODEC,DESTINATION].",
)
@click.option("--force", is_flag=True, help="Replace an existing DESTINATION.")
@renamed_option("--photos", "--images")
@trust_option
def export(
    checkpoint: Path, destination: Path, half: bool, images: tuple[Path, ...], training: bool, force: bool
) -> None:
    """Export the codec of a training CHECKPOINT as a weights file DESTINATION (.safetensors).

    CHECKPOINT may be the folder of a training run; its last checkpoint is then used.
    """
    if training and images:
        raise click.UsageError("--images: only applies to a codec; omit it with --training")
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
    paths = [path for _, path in list_sources(images)] if images else []
    with tqdm(paths, desc="counting", unit="image", disable=None if paths else True) as counted:
        write(checkpoint, destination, half, counted)

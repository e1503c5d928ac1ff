"""The commands that Hydra configures: `glc train` and `glc eval`."""

import click

from glc.cli.errors import needs
from glc.cli.trust import trust_option

SETTINGS = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
"""Hydra's own flags, such as `-m` and `--cfg job`, pass through."""

_words = click.argument("arguments", metavar="[KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)


@click.command("train", context_settings=SETTINGS)
@_words
@trust_option
def train(arguments: tuple[str, ...]) -> None:
    """Train a stage of a codec.

    \b
    glc pack TRAIN_IMAGES data/mine && glc pack VAL_IMAGES data/val
    glc train stage=vqvae     name=mine data=shards data.train=data/mine data.val=data/val
    glc train stage=transform name=mine data=shards data.train=data/mine data.val=data/val
    glc train stage=joint     name=mine data=shards data.train=data/mine data.val=data/val
    glc export runs/mine/joint mine.safetensors
    glc train -m stage=transform stage.lmbda=0.5,1,2,4      (sweep: one run per value)

    A run is saved in runs/NAME/STAGE; each stage starts from the previous one. `--cfg job` shows all keys,
    `--config-dir DIR` adds a folder with your own configuration, `--hydra-help` shows Hydra's flags.
    """
    with needs("train", "torchvision", "torchmetrics", "lpips", "webdataset"):
        from glc.launch.train import main
    main(arguments)


@click.command("eval", context_settings=SETTINGS)
@click.option(
    "--shards",
    multiple=True,
    metavar="PATTERN",
    help="Tar shards of images: a file, a folder, or a pattern like 'val-{000..099}.tar'. Repeatable.",
)
@_words
@trust_option
def evaluate(arguments: tuple[str, ...], shards: tuple[str, ...]) -> None:
    """Evaluate codecs on a folder of images or a test set.

    \b
    glc eval codec=mine.safetensors testset=folder testset.path=IMAGES out=RESULTS
    glc eval codec=jpeg qualities=[5,10] testset=kodak testset.path=KODAK out=RESULTS
    glc eval codec=[mine.safetensors,vvc] target_bpp=[0.03] testset.path=IMAGES out=RESULTS
    glc eval --shards 'val-{000..099}.tar' codec=mine.safetensors out=RESULTS processes=8

    Each image is compressed and decompressed. RESULTS gets summary.json, per_image.csv, the compressed files
    and the decoded images. To resume an interrupted evaluation, run the same command again.
    metrics.weights_dir=DIR names a folder with the metrics' weights. `--cfg job` shows all keys,
    `--config-dir DIR` adds a folder with your own configuration.
    """
    with needs("eval", "torchvision", "torchmetrics", "lpips"):
        from glc.launch.evaluate import main
    unnamed = shards and not any(word.startswith("testset=") for word in arguments)
    main([*arguments, *(["testset=shards"] if unnamed else [])], shards)

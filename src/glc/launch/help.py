"""The short help of `glc train` and `glc eval`; needs no package outside of the standard library."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from glc.launch.config import CONF


class Help(NamedTuple):
    """What the help of a command says."""

    summary: str
    groups: dict[str, str]
    """Groups of choices, and what each is for."""
    keys: dict[str, str]
    """The keys that most commands set."""
    examples: Sequence[str]
    listing: str
    """Words with which all keys can be listed."""


TRAIN = Help(
    "Train a stage of a codec. A run is saved in runs/NAME/STAGE; each stage starts from the previous one.",
    {
        "stage": "what to train (required)",
        "model": "size of the networks",
        "model/variants": "ablations of the model",
        "experiment": "settings of a whole recipe; combine several in a list, [a,b]",
        "data": "training and validation images",
        "perceptual": "the perceptual loss: LPIPS, or a mixture of distances",
        "discriminator": "the adversarial loss: PatchGAN, or on pretrained features",
        "degradation": "with stage=restoration: what the encoder undoes",
        "trainer": "devices: one machine, torchrun, SLURM",
        "metrics": "metrics of validation",
        "logger": "W&B and CSV, or CSV alone",
        "sweep": "a sweep or search defined in yaml, with -m",
        "hydra/launcher": "where the runs of a sweep start",
    },
    {
        "name=NAME": "name of the run, shared by its stages",
        "data.train=A data.val=B": "folders of images or shards",
        "batch=8": "images per step, over all devices",
        "trainer.max_steps=N": "length of the training",
        "stage.optimizer.lr=1e-4": "learning rate",
        "trainer.devices=8": "GPUs of this machine",
        "resume=auto": "resume the run if it has a checkpoint",
        "overwrite=true": "delete its checkpoints and start again",
        "init_from=FILE": "weights to start from",
    },
    (
        "stage=vqvae model=small data=folder data.train=TRAIN_IMAGES data.val=VAL_IMAGES name=mine",
        "stage=transform model=small data=folder data.train=TRAIN_IMAGES data.val=VAL_IMAGES name=mine",
        "stage=joint experiment=paper model=natural data.train=SHARDS data.val=IMAGES trainer.devices=8",
        "stage=joint model=small data=folder data.train=A data.val=B name=mine resume=last",
        "-m stage=transform stage.lmbda=0.5,1,2,4 name=mine data.train=SHARDS data.val=IMAGES",
    ),
    "stage=vqvae model=small",
)
EVALUATE = Help(
    "Evaluate codecs: each image is compressed to a file, decompressed and measured.",
    {"testset": "images to measure on", "metrics": "metrics to compute"},
    {
        "codec=NAME": "a weights file, a model, another codec (jpeg, webp, avif, vvc, ...), or a list",
        "out=FOLDER": "folder for the results",
        "testset.path=FOLDER": "the images",
        "target_bpp=[0.03]": "bits per pixel, for all codecs",
        "qualities=[5,10]": "settings of a single codec",
        "metrics.weights_dir=DIR": "folder with the weights of metric networks",
        "processes=8": "processes; device=[cuda:0,cuda:1] divides them among GPUs",
    },
    (
        "codec=small testset.path=IMAGES out=results/small",
        "codec=mine.safetensors testset=kodak testset.path=KODAK out=results/mine",
        "codec=jpeg qualities=[5,10] testset.path=IMAGES out=results/jpeg",
        "codec=[mine.safetensors,vvc] target_bpp=[0.03] testset.path=IMAGES out=results/both",
        "codec=small testset=shards \"testset.path='val-{000..099}.tar'\" out=results/val processes=8",
    ),
    "codec=small",
)
HELP = {"train": TRAIN, "evaluate": EVALUATE}


def choices(group: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """Return the names that a group of the configuration accepts, from its files in the folders."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("[!_]*.yaml")})


def help_text(config_name: str, program: str, folders: Sequence[Path] = (CONF,)) -> str:
    """Return the help of a command.

    Args:
        config_name: `train` or `evaluate`.
        program: the command, such as `glc train`.
        folders: folders of the configuration, with the user's own.
    """
    page = HELP[config_name]
    lines = [f"Usage: {program} [FLAGS] KEY=VALUE ...", "", page.summary, "", "Choices, as GROUP=NAME:"]
    for group, purpose in page.groups.items():
        lines += [f"  {group:<15} {purpose}", f"  {'':<15} {', '.join(choices(group, folders))}"]
    lines += ["", "Keys that most commands set:"]
    width = max(map(len, page.keys))
    lines += [f"  {key:<{width}}  {purpose}" for key, purpose in page.keys.items()]
    lines += ["", "Examples:", *(f"  {program} {example}" for example in page.examples)]
    lines += [
        "",
        "Flags:",
        f"  --cfg job           print the configuration: {program} {page.listing} --cfg job",
        "  --config-dir DIR    add a folder with your own configuration",
        "  --multirun, -m      a sweep: one run for each combination of values KEY=A,B",
        f'  --completion bash   completion with TAB (or zsh, fish): eval "$({program} --completion bash)"',
        "  --hydra-help        all flags of Hydra",
    ]
    return "\n".join(lines)

"""Commands about models and their files: `glc models`, `glc convert`, `glc export`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glc.cli.errors import ONE_FAILED, needs
from glc.cli.options import renamed_option, trust_option

if TYPE_CHECKING:
    from tqdm import tqdm


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the known models, and the encoders and decoders made for them.

    Known are the bundled models and the .safetensors files in the folder that the environment variable
    GLC_MODELS names.
    """
    from glc.cli.codecs import known_models
    from glc.codec.weights.catalog import DEFAULT_MODEL, FOLDER_VARIABLE

    known, problems = known_models()
    if as_json:
        rows = [
            {
                "name": model.name,
                "default": model.name == DEFAULT_MODEL,
                "fingerprint": model.fingerprint,
                "rates": model.rates,
                "file": click.format_filename(model.file),
                "bytes": model.bytes,
                "encoders": model.variants("encoder"),
                "decoders": model.variants("decoder"),
            }
            for model in known
        ]
        click.echo(json.dumps(rows, ensure_ascii=False))
    elif known:
        width = max(10, *(len(model.name) for model in known)) + 2
        click.echo(f"{'name':<{width}}{'weights':<10}{'rate points':>11}{'size':>12}  file")
        for model in known:
            megabytes = f"{model.bytes / 1e6:.1f} MB"
            name = f"{model.name}{' *' * (model.name == DEFAULT_MODEL)}"
            file = click.format_filename(model.file)
            click.echo(
                f"{name:<{width}}{model.fingerprint[:8]:<10}{len(model.rates):>11}{megabytes:>12}  {file}"
            )
            for kind in ("encoder", "decoder"):
                for variant in model.variants(kind):
                    click.echo(f"  --{kind} {variant}")
        if any(model.name == DEFAULT_MODEL for model in known):
            click.echo("* default model")
    else:
        click.echo(f"no models found; set {FOLDER_VARIABLE} to a folder of weights files", err=True)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise click.exceptions.Exit(ONE_FAILED)


images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Images to count the hyper-latent's codewords on at each rate point, which makes files smaller: a "
    "folder, a text file that lists images, or an image. Use images like those to be compressed. Repeatable.",
)


def _counted(images: tuple[Path, ...]) -> "tqdm[Path]":
    """Return the image files in folders and lists, with a progress bar; close it."""
    from tqdm import tqdm

    from glc.data.sources import list_sources

    paths = [path for _, path in list_sources(images)] if images else []
    return tqdm(paths, desc="counting", unit="image", disable=None if paths else True)


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["auto", "glc", "taming", "codeformer", "lightning"]),
    default="auto",
    show_default=True,
    help="Format of SOURCE: the released GLC image model, a VQGAN of taming-transformers or CodeFormer, or a "
    "training checkpoint of this project. auto detects it from the tensor names.",
)
@click.option(
    "--to",
    "target",
    type=click.Choice(["glc"]),
    help="Convert to the authors' format; SOURCE is a weights file or training checkpoint of model=natural.",
)
@images_option
@trust_option
@click.option("--force", is_flag=True, help="Replace an existing DESTINATION.")
def convert(
    source: Path, destination: Path, kind: str, target: str | None, images: tuple[Path, ...], force: bool
) -> None:
    """Convert third-party weights SOURCE to a weights file DESTINATION (.safetensors).

    A GLC image model becomes a codec. A VQGAN becomes an autoencoder that training can start from
    (init_from=). No code in SOURCE is executed. With --to glc, a codec of this project is converted to the
    format of the authors' code.
    """
    from glc.codec.convert.convert import convert as convert_to_ours
    from glc.codec.convert.convert import convert_to_official

    if target is None:
        with _counted(images) as paths:
            lines = convert_to_ours(source, destination, kind, force, paths)
    elif images:
        raise click.UsageError("--images cannot be combined with --to glc")
    elif kind != "auto":
        raise click.UsageError("--kind cannot be combined with --to glc")
    else:
        lines = convert_to_official(source, destination, force=force)
    for line in lines:
        click.echo(line)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--onnx",
    is_flag=True,
    help="Write ONNX graphs of E, g_a, g_s and D to the folder DESTINATION instead. CHECKPOINT may also be a "
    "weights file or a known model.",
)
@click.option("--half", is_flag=True, help="Store the weights in half precision, which halves the file.")
@images_option
@click.option(
    "--training",
    is_flag=True,
    help="Write the training weights instead: codebook C, code predictor, E_VQ and discriminator, for "
    "init_from=[CODEC,DESTINATION].",
)
@click.option(
    "--codec",
    metavar="CODEC",
    help="For the encoder or decoder of a fine-tune stage: write CODEC, for which it was trained, with it in "
    "place of CODEC's own. CODEC is a weights file, a model's name, or a run.",
)
@click.option("--force", is_flag=True, help="Replace an existing DESTINATION.")
@click.option(
    "--wandb",
    "project",
    metavar="PROJECT",
    help="Also log the codec, with its card NAME.md if there is one, as an artifact of a W&B project.",
)
@renamed_option("--photos", "--images")
@trust_option
def export(
    checkpoint: Path,
    destination: Path,
    onnx: bool,
    half: bool,
    images: tuple[Path, ...],
    training: bool,
    codec: str | None,
    force: bool,
    project: str | None,
) -> None:
    """Export the codec of a training CHECKPOINT as a weights file DESTINATION (.safetensors).

    CHECKPOINT may be the folder of a training run; its last checkpoint is then used. It may also be a codec's
    weights file, which --images or --half change.
    """
    if codec is not None and (onnx or training):
        raise click.UsageError("--codec cannot be combined with --onnx or --training")
    if training and images:
        raise click.UsageError("--images: only applies to a codec; omit it with --training")
    if onnx and (half or images or training or project):
        raise click.UsageError("--onnx cannot be combined with --half, --images, --training or --wandb")
    if onnx:
        _export_graphs(checkpoint, destination, force)
        return
    if not checkpoint.exists():
        raise click.BadParameter(f"Path {str(checkpoint)!r} does not exist.", param_hint="'CHECKPOINT'")
    if training and project:
        raise click.UsageError("--wandb: only applies to a codec; omit it with --training")
    if project:
        with needs("train", "wandb", "lightning", "hydra"):
            from glc.launch.lineage import log_export
    from glc.codec.weights.export import export as write
    from glc.codec.weights.export import export_training_weights
    from glc.io.atomic import check_destination

    if checkpoint.is_dir():
        checkpoint = checkpoint / "checkpoints" / "last.ckpt"
    check_destination(destination, checkpoint, force)
    if training:
        click.echo(f"{destination}: {', '.join(export_training_weights(checkpoint, destination, half))}")
        return
    with _counted(images) as counted:
        write(checkpoint, destination, half, counted, codec=codec)
    if project:
        log_export(checkpoint, destination, project)


def _export_graphs(source: Path, folder: Path, force: bool) -> None:
    from glc.codec.onnx.export import export_onnx

    for path, size, largest, decibels in export_onnx(source, folder, force):
        compared = "not compared: PyTorch is not installed"
        if largest is not None:
            compared = f"largest difference from PyTorch {largest:.1e}, PSNR {decibels:.1f} dB"
        click.echo(f"{click.format_filename(path)}: {size / 1e6:.1f} MB, {compared}")

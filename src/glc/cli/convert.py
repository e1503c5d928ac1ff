"""The command `glc convert`: third-party checkpoints to weights files of glc, and back."""

from pathlib import Path

import click

from glc.cli.trust import trust_option


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
@trust_option
@click.option("--force", is_flag=True, help="Replace an existing DESTINATION.")
def convert(source: Path, destination: Path, kind: str, target: str | None, force: bool) -> None:
    """Convert third-party weights SOURCE to a weights file DESTINATION (.safetensors).

    A GLC image model becomes a codec. A VQGAN becomes an autoencoder that training can start from
    (init_from=). No code in SOURCE is executed. With --to glc, a codec of this project is converted to the
    format of the authors' code.
    """
    from glc.codec.convert.convert import convert as convert_to_ours
    from glc.codec.convert.convert import convert_to_official

    if target is None:
        lines = convert_to_ours(source, destination, kind, force)
    elif kind != "auto":
        raise click.UsageError("--kind cannot be combined with --to glc")
    else:
        lines = convert_to_official(source, destination, force=force)
    for line in lines:
        click.echo(line)

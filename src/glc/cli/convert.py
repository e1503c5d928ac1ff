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
    help="What SOURCE is: the released GLC image model, a VQGAN of taming-transformers or of CodeFormer, or "
    "a checkpoint of glc's own training. By default it is recognised by the names of its tensors.",
)
@click.option(
    "--to",
    "target",
    type=click.Choice(["glc"]),
    help="Write the authors' layout: SOURCE is a natural codec's weights file or training checkpoint.",
)
@trust_option
@click.option("--force", is_flag=True, help="Replace DESTINATION where it exists.")
def convert(source: Path, destination: Path, kind: str, target: str | None, force: bool) -> None:
    """Convert published weights SOURCE to a weights file DESTINATION (.safetensors) of glc.

    A GLC image model becomes a codec. A VQGAN becomes an auto-encoder to start trainings from (init_from=).
    Nothing in SOURCE is executed. With --to glc, one of our codecs becomes a file for the authors' code.
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

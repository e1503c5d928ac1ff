"""The commands `glc report` and `glc complexity`."""

import json
import re
from pathlib import Path

import click

from glc.cli.errors import needs, renamed_option
from glc.cli.trust import trust_option


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write.",
)
@click.option(
    "--originals",
    type=click.Path(path_type=Path),
    help="Folder of the original images, shown beside the decoded ones.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Maximum number of images in the slider.",
)
@click.option(
    "--tables",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for plots (PNG, SVG) and tables (Markdown, LaTeX).",
)
@click.option("--published/--no-published", default=True, help="Plot published results, if there are any.")
@click.option(
    "--anchor", metavar="CODEC", help="Codec that BD-rates are relative to.  [default: that of the first RUN]"
)
@renamed_option("--pictures", "--images")
def report(
    runs: tuple[Path, ...],
    output: Path,
    originals: Path | None,
    images: int,
    tables: Path | None,
    published: bool,
    anchor: str | None,
) -> None:
    """Write a self-contained HTML report of evaluations; each RUN is the out= folder of one."""
    with needs("eval"):
        from glc.evaluation.report import build_report, write_tables
        from glc.evaluation.results import read_runs
        from glc.io.atomic import write_text

    found = read_runs(runs)
    page = build_report(found, originals, images, published, anchor)
    if tables is not None:
        write_tables(found, tables, published, anchor)
    write_text(output, page)
    click.echo(f"{click.format_filename(output)}: {len(page.encode()) / 1e6:.1f} MB")


def _size(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[tuple[int, int]]:
    sizes = []
    for text in value:
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
        if found is None or int(found[1]) == 0 or int(found[2]) == 0:
            raise click.BadParameter(f"invalid size {text!r}; give WIDTHxHEIGHT, e.g. 768x512")
        sizes.append((int(found[1]), int(found[2])))
    return list(dict.fromkeys(sizes))


@click.command()
@click.argument("model", metavar="NAME|FILE")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WxH",
    callback=_size,
    default=("256x256", "768x512", "1920x1080"),
    show_default=True,
    help="Width and height of an image. Repeatable.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="cpu|cuda",
    help="Device to measure on. Repeatable.  [default: all available]",
)
@click.option("--quality", type=click.FloatRange(0, 100), default=50, show_default=True)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of timed calls; the median is reported.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for complexity.md and complexity.json.",
)
@trust_option
def complexity(
    model: str,
    sizes: list[tuple[int, int]],
    devices: tuple[str, ...],
    quality: float,
    repeats: int,
    output: Path | None,
) -> None:
    """Measure a model's complexity: parameters, MACs, time and memory per image size and device."""
    from glc.codec.codec import load

    with needs("eval"):
        from glc.evaluation.complexity import (
            Complexity,
            devices_present,
            macs_by_part,
            measure,
            name_of,
            parameters_by_part,
            to_markdown,
        )
        from glc.io.atomic import write_text

    measurements = []
    codec = None
    for device in dict.fromkeys(devices or devices_present()):
        codec = load(model, device)
        for size in sizes:
            click.echo(f"{device}, {name_of(size)}", err=True)
            measurements.append(measure(codec, size, quality, repeats))
    assert codec is not None
    found = Complexity(
        model=Path(model).name,
        fingerprint=codec.weights.fingerprint,
        quality=quality,
        parameters=parameters_by_part(codec.model),
        macs={name_of(size): macs_by_part(codec.model, size) for size in sizes},
        measurements=measurements,
    )
    text = to_markdown(found)
    if output is not None:
        write_text(output / "complexity.md", text)
        write_text(output / "complexity.json", json.dumps(found.to_json(), indent=2) + "\n")
    click.echo(text, nl=False)

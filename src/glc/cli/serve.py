"""The command `glc serve`: a local page."""

from pathlib import Path

import click

from glc.cli.errors import needs
from glc.cli.trust import trust_option


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Any other lets everyone who reaches it use the page.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option("--model", metavar="NAME|FILE", help="Model that is selected first.")
@click.option(
    "--device", metavar="auto|cpu|cuda", default="auto", show_default=True, help="Device of the networks."
)
@click.option(
    "--max-upload-mb",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Largest file that is accepted.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=24_000_000,
    show_default=True,
    help="Largest image that is accepted, width times height.",
)
@click.option(
    "--weights-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with AlexNet's weights for LPIPS.  [default: torch hub's cache]",
)
@trust_option
def serve(
    host: str,
    port: int,
    model: str | None,
    device: str,
    max_upload_mb: int,
    max_pixels: int,
    weights_dir: Path | None,
) -> None:
    """Open a local page: compress, open files, restore, fill holes, render in a style.

    It works offline and contacts no other machine. Stop it with Ctrl-C.
    """
    with needs("app"):
        from glc.app.page import launch
    from glc.app.service import Studio

    studio = Studio(model, device, max_upload_mb * 1_000_000, max_pixels, weights_dir)
    page, url = launch(studio, host, port)
    click.echo(f"{url} (Ctrl-C stops)")
    if host not in ("127.0.0.1", "localhost", "::1"):
        click.echo(f"note: whoever reaches {host} can use this page", err=True)
    page.block_thread()

"""The command `glc serve`: the web app."""

from pathlib import Path

import click

from glc.cli.errors import needs
from glc.cli.options import background_option, device_option, trust_option


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. With another address, everyone who can connect can use the app.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Name by which browsers may call the server, besides localhost, addresses and --host (repeatable).",
)
@click.option("--model", metavar="NAME|FILE", help="Model to select initially.")
@device_option
@click.option(
    "--max-upload-mb",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Maximum size of an uploaded file.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=24_000_000,
    show_default=True,
    help="Maximum width x height of an image.",
)
@click.option(
    "--weights-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with AlexNet's weights for LPIPS.  [default: torch hub's cache]",
)
@background_option
@trust_option
def serve(
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    model: str | None,
    device: str,
    max_upload_mb: int,
    max_pixels: int,
    weights_dir: Path | None,
    background: str,
) -> None:
    """Start the web app: compress, decode, restore, inpaint and stylize images.

    It works offline and contacts no other machine. Stop it with Ctrl-C.
    """
    with needs("app"):
        from glc.app.page import launch
    from glc.app.service import Service

    service = Service(model, device, max_upload_mb * 1_000_000, max_pixels, weights_dir, background)
    page, url = launch(service, host, port, allow_host)
    click.echo(f"{url} (Ctrl-C stops)")
    if host not in ("127.0.0.1", "localhost", "::1"):
        click.echo(f"note: everyone who can connect to {host} can use the app", err=True)
    page.block_thread()

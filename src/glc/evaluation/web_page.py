"""The shell of self-contained HTML pages: sections, inline styles and scripts, data; nothing is loaded."""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from PIL import Image

WEBP_QUALITY = 88
"""High enough that visible artefacts come from the codec under test."""


@dataclass(frozen=True)
class Section:
    """A part of a page, with a heading and an entry in the navigation."""

    key: str
    """Its id in the page."""
    name: str
    """Heading, plain text."""
    content: str
    """HTML."""


def web_page(
    title: str,
    sections: Sequence[Section],
    scripts: Sequence[str],
    side: str = "",
    reload_seconds: float | None = None,
) -> str:
    """Return a page as HTML.

    Args:
        title: plain text.
        sections: in their order.
        scripts: files of the folder `page`, in the order in which they run.
        side: HTML of a column that stays visible beside the sections.
        reload_seconds: period at which the page reloads itself; None for never.
    """
    links = "".join(f'<a href="#{part.key}">{html.escape(part.name)}</a>' for part in sections)
    body = "\n".join(
        f'<section id="{part.key}">\n<h2>{html.escape(part.name)}</h2>\n{part.content}</section>'
        for part in sections
    )
    heading = f"<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n"
    if side:
        body = f'<div class="columns">\n<aside>\n{side}</aside>\n<main>\n{body}\n</main>\n</div>'
    code = "\n".join(asset(name) for name in scripts)
    period = "" if reload_seconds is None else f' data-reload="{reload_seconds:g}"'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The page is self-contained: the browser need not load anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{asset('style.css')}</style>\n</head>\n"
        f'<body class="{"wide" if side else "narrow"}"{period}>\n'
        f"{heading}{body}\n<script>\n{code}</script>\n</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """Return the text of a file of the folder `page`."""
    return files("glc.evaluation").joinpath(f"page/{name}").read_text("utf-8")


def data_script(key: str, data: Any) -> str:
    """Return an element with data as JSON, for scripts; its id is `key`. Numbers must be finite."""
    # "<" could end the script.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )
    return f'<script type="application/json" id="{key}">{text}</script>\n'


def warning(text: str) -> str:
    """Return a highlighted paragraph."""
    return f'<p class="warning">{html.escape(text)}</p>'


def embed(image: Image.Image, side: int) -> str:
    """Encode an image as a WebP `data:` URL, downscaled to at most `side` pixels."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

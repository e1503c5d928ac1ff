"""MkDocs hook: add files outside docs/ as pages, with adapted links."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from glc.app.decoder_page import has_runtime, write_page
from glc.codec.weights.catalog import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "data/README.md": "data.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `PAGES` to the site."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_linked((ROOT / source).read_text("utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Redirect links in docs/ to the pages of `PAGES`; turn links to folders and weights into text."""
    if page.file.src_uri == "browser.md" and has_runtime():
        markdown = markdown.replace("\n\n", '\n\n<a href="decoder/index.html">Open the decoder</a>\n\n', 1)
    for source, name in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)+{re.escape(source)}(#[\w-]*)?\)", rf"]({name}\1)", markdown)
    return re.sub(r"\[([^\]]+)\]\([\w./-]+(?:/|\.safetensors)\)", r"`\1`", markdown)


def on_post_build(config: Any) -> None:
    """Put the page that decodes in a browser beside the documentation, if its runtime was fetched."""
    if has_runtime():
        write_page(Path(config.site_dir, "decoder"), [DEFAULT_MODEL])


def _linked(text: str) -> str:
    """Return a page with links relative to docs/."""
    text = re.sub(r"\]\((?:\.\./)?docs/", "](", text)
    for source, name in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}(#[\w-]*)?\)", rf"]({name}\1)", text)
    return text

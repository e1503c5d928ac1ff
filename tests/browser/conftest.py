"""A headless browser for tests of pages.

`open_page` opens an address and records requests and errors. The browser is the one that `GLC_BROWSER` names,
an installed one (Chromium, Chrome, Edge), or Playwright's own; without any, the tests are skipped.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
)
INSTALL = (
    "no browser found: `apt-get install chromium-headless-shell` (Debian), "
    "`playwright install chromium`, or GLC_BROWSER=PATH of a Chromium"
)


@dataclass
class Watched:
    """A page, and its requests and errors since it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Requested addresses, except `data:`."""
    errors: list[str] = field(default_factory=list)
    """Exceptions of its scripts, and errors and warnings on the console."""


OpenPage = Callable[..., Watched]


def find_browser(own: str) -> str | None:
    """Return the browser to start: `GLC_BROWSER`, an installed one, or Playwright's own at `own`."""
    named = os.environ.get("GLC_BROWSER")
    if named is not None:
        assert shutil.which(named), f"GLC_BROWSER={named}: no such program"
        return named
    installed = (shutil.which(name) for name in NAMES)
    return next(filter(None, installed), own if Path(own).is_file() else None)


# Module scope, not session: an event loop runs in this thread while the browser is open.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running browser."""
    with sync_playwright() as playwright:
        program = find_browser(playwright.chromium.executable_path)
        if program is None:
            pytest.skip(INSTALL)
        # Chromium refuses to run its sandbox as root, the user in most containers.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"] if root else [], timeout=60_000
        )
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open an address in a new context: `open_page(url, offline=True, width=1200, height=900)`."""
    contexts = []

    def open_page(url: str, offline: bool = True, width: int = 1200, height: int = 900) -> Watched:
        context = browser.new_context(offline=offline, viewport={"width": width, "height": height})
        contexts.append(context)
        watched = Watched(context.new_page())
        page = watched.page
        page.on("request", lambda r: None if r.url.startswith("data:") else watched.requests.append(r.url))
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on(
            "console",
            lambda m: watched.errors.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.goto(url)
        return watched

    yield open_page
    for context in contexts:
        context.close()

"""A real browser, without a window, for tests of pages.

`open_page` opens an address and watches what the page does. The browser is the one that `GLC_BROWSER` names,
one that is installed (Chromium, Chrome, Edge), or Playwright's own; where there is none the tests are skipped
and say so.
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
    "no browser was found: `apt-get install chromium-headless-shell` (Debian), "
    "`playwright install chromium`, or GLC_BROWSER=PATH of a Chromium"
)


@dataclass
class Watched:
    """A page, and what it has done since it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for, those of `data:` aside."""
    errors: list[str] = field(default_factory=list)
    """Exceptions of its scripts, and errors and warnings on its console."""


OpenPage = Callable[..., Watched]


def find_browser(own: str) -> str | None:
    """Return the program to start: named, installed, or Playwright's own, whose path is given."""
    named = os.environ.get("GLC_BROWSER")
    if named is not None:
        assert shutil.which(named), f"GLC_BROWSER={named}: no such program"
        return named
    installed = (shutil.which(name) for name in NAMES)
    return next(filter(None, installed), own if Path(own).is_file() else None)


# Of a module and not of the session: while it runs, so does an event loop in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running browser."""
    with sync_playwright() as playwright:
        program = find_browser(playwright.chromium.executable_path)
        if program is None:
            pytest.skip(INSTALL)
        # Chromium refuses its sandbox to root, which tests in containers are.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"] if root else [], timeout=60_000
        )
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens an address in a window of its own: `open_page(url, offline=True, width=1200, height=900)`."""
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

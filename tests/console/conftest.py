"""A real Chromium for tests of the console, a page that keeps what went wrong in it, and axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="NO CHROMIUM: the console is not tested; apt-get install chromium"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    sync = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: the console is not tested; make setup")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The same one for a file's tests; each test's pages have a profile of their own and end with the test."""
    yield chromium
    for profile in chromium.contexts:
        profile.close()


def troubles_of(page: Any) -> list[str]:
    """Errors in the page's console and scripts that nobody caught; the list grows while the page lives."""
    found: list[str] = []
    page.on("console", lambda m: found.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: found.append(str(e)))
    return found


def serious(page: Any) -> list[str]:
    """What axe finds serious or critical in the page as it is."""
    from axe_playwright_python.sync_playwright import Axe

    # The policy lets no other script in, axe excepted: it is evaluated by the browser's own debugger.
    found = Axe().run(page).response["violations"]
    return [f"{page.url} {v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]

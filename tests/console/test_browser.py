"""The console in a real Chromium: sign in, walk the wizard to a live reply, and look at each page with axe."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from console.conftest import needs_chromium, serious, troubles_of
from stories.conftest import Up, own_up, write_app  # noqa: F401  (own_up is a fixture)

pytestmark = [pytest.mark.process, needs_chromium]


def test_a_zip_becomes_an_endpoint_that_answers_in_the_playground(own_up: Up, browser: Any, tmp_path: Path) -> None:  # noqa: F811
    folder = write_app(tmp_path / "greeter")
    packed = tmp_path / "greeter.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"greeter/{file.name}")
    page = browser.new_page()
    troubles = troubles_of(page)
    page.goto(own_up.client.console_link()["url"])
    page.get_by_text("Nothing is deployed yet").wait_for()
    assert "open" not in page.url and not page.context.cookies()

    page.goto(f"{own_up.url}/#/deploy")
    page.get_by_label("Or a .zip or .tar.gz of it").set_input_files(packed)
    page.get_by_text("the structure is fine").wait_for()
    violations = serious(page)
    page.get_by_role("button", name="Next").click()
    page.get_by_label("Name").fill("greeter")
    for heading in ("Machine", "Runtime and environment", "Review"):
        page.get_by_role("button", name="Next").click()
        page.get_by_role("heading", name=heading, exact=True).wait_for()
        violations += serious(page)
    assert "puna deploy" in page.locator("pre").inner_text()
    page.get_by_role("button", name="Deploy", exact=True).click()
    page.get_by_role("link", name="Open the playground").wait_for(timeout=120_000)
    violations += serious(page)
    page.get_by_role("link", name="Open the playground").click()
    own_up.until(lambda: own_up.client.endpoint("greeter")["revision"] == 1, 60, "revision 1 serves")
    page.reload()
    page.get_by_label("prompt").fill("what is AI?")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("v1:what is AI?").first.wait_for(timeout=60_000)

    tabs = ("overview", "playground", "metrics", "logs", "revisions", "settings", "events")
    paths = ["/", *(f"/endpoints/greeter/{tab}" for tab in tabs)]
    paths += ["/builds", "/runs", "/models", "/runtimes", "/keys", "/secrets"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for path in paths:
            page.goto(f"{own_up.url}/#{path}")
            page.wait_for_timeout(300)  # the page has no quiet moment: its stream never ends
            violations += serious(page)
    page.set_viewport_size({"width": 380, "height": 800})
    for path in paths:
        page.goto(f"{own_up.url}/#{path}")
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, path
    assert violations == [] and troubles == []

    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.inlineRan = true';
        document.body.append(script);
    }""")
    assert page.evaluate("window.inlineRan") is None and any("Content Security Policy" in said for said in troubles)

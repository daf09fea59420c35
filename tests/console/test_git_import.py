"""A repository in the console, from a bare `puna up`: imported, built, tried, pushed to under load, then broken."""

from __future__ import annotations

import os
import re
from typing import Any

import httpx
import pytest

from console.conftest import needs_chromium, serious, troubles_of
from git_server import GitServer
from stories.conftest import Callers, Up
from stories.test_git import APP, server, up  # noqa: F401  (fixtures)
from webhook import push, signed

pytestmark = [pytest.mark.process, needs_chromium]
SHOTS = os.environ.get("PUNA_SCREENSHOTS", "")
"""A folder for pictures of each step, for whoever wants to look."""


class Console:
    """The one page that the story is seen in."""

    def __init__(self, browser: Any, up: Up) -> None:  # noqa: F811
        self.up, self.page, self.seen = up, browser.new_page(viewport={"width": 1200, "height": 900}), 0
        self.troubles, self.violations = troubles_of(self.page), []

    def look(self, name: str) -> None:
        """What axe says of the page as it is, and a picture of it."""
        self.violations += serious(self.page)
        self.seen += 1
        if SHOTS:
            self.page.screenshot(path=f"{SHOTS}/{self.seen:02d}-{name}.png", full_page=True)

    def next(self, heading: str) -> None:
        """One step of the wizard further."""
        self.page.get_by_role("button", name="Next").click()
        self.page.get_by_role("heading", name=heading, exact=True).wait_for(timeout=30_000)

    def go(self, path: str) -> None:
        """Another page of the console."""
        self.page.goto(f"{self.up.url}/#{path}")


def submitted(console: Console, server: GitServer) -> None:  # noqa: F811
    """The wizard, from the first step to the build."""
    page = console.page
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Deploy").click()
    page.get_by_role("radio", name="Another git server").check()
    page.get_by_label("Repository", exact=True).fill(server.url("chat"))
    page.get_by_label("Branch", exact=True).fill("main")
    page.get_by_role("button", name="Next").click()
    page.get_by_text("it is private, or not there").first.wait_for()
    console.look("private")
    (said,) = console.troubles  # Chromium's own line for a refusal, and nothing else
    assert "400" in said
    console.troubles.clear()
    page.get_by_text("Add an account").click()
    page.get_by_label("Account's name", exact=True).fill("my-git")
    page.get_by_label("Token or key", exact=True).fill("t0ken")
    page.get_by_role("button", name="Keep it").click()
    page.get_by_text("my-git is kept, encrypted").wait_for()
    page.get_by_role("button", name="Fetch").click()
    page.get_by_text("the structure is fine").wait_for(timeout=30_000)
    console.look("source")
    console.next("Details")
    assert page.get_by_label("Name", exact=True).input_value() == "chat"
    page.get_by_text("prompt").first.wait_for()
    console.look("details")
    console.next("Machine")
    page.get_by_label("Replicas at least", exact=True).fill("1")
    console.look("machine")
    console.next("Runtime and environment")
    page.get_by_role("button", name="Add a variable").click()
    page.get_by_label("Variable's name", exact=True).fill("MOOD")
    page.get_by_label("Variable's value", exact=True).fill("calm and clear")
    assert page.get_by_label("Build again after every push to the branch", exact=True).is_checked()
    console.look("runtime")
    console.next("Review")
    command = page.locator("pre").inner_text()
    assert f"puna deploy --git {server.url('chat')}" in command and "--auto-rebuild" in command, command
    assert "--credential my-git" in command and "--env 'MOOD=calm and clear'" in command
    console.look("review")
    page.get_by_role("button", name="Deploy", exact=True).click()


def test_a_repository_from_import_to_a_broken_push(up: Up, server: GitServer, browser: Any) -> None:  # noqa: F811
    console = Console(browser, up)
    page = console.page
    page.goto(up.client.console_link()["url"])
    page.get_by_text("Nothing is deployed yet").wait_for()
    console.look("home")
    submitted(console, server)

    log = page.get_by_role("log", name="Build log")
    page.get_by_role("link", name="Open the playground").wait_for(timeout=120_000)
    assert log.inner_text().strip(), "the build's log arrived while the page was open"
    console.look("build")
    page.get_by_role("link", name="Open the playground").click()
    page.get_by_label("prompt", exact=True).fill("what is AI?")
    up.until(lambda: up.client.endpoint("chat")["revision"] == 1, 60, "revision 1 serves")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("v1:what is AI?").first.wait_for(timeout=60_000)
    console.look("playground")

    console.go("/endpoints/chat/webhooks")
    page.get_by_role("button", name="Show the secret").click()
    shown = page.locator(".code code").all_inner_texts()
    address, secret = next(t for t in shown if "/hooks/" in t), next(t for t in shown if re.fullmatch(r"[\w-]{20,}", t))

    def tell(commit: str) -> None:
        body = push(server.url("chat"), commit)
        assert httpx.post(address, content=body, headers=signed(body, secret, commit)).status_code == 202

    with Callers(up, "chat", 4) as callers:
        tell(server.push("chat", {"app.py": APP % "v2"}))
        page.get_by_text("Revision 2").wait_for(timeout=60_000)
        up.until(lambda: up.client.endpoint("chat")["revision"] == 2, 60, "the second revision")
        callers.more(20)
        tell(server.push("chat", {"app.py": "import nothing_like_it\n" + APP % "v3"}))
        page.get_by_text("Revision 3").wait_for(timeout=60_000)
        page.get_by_text("nothing_like_it").first.wait_for(timeout=60_000)
        callers.more(20)
    assert callers.failed() == [] and callers.broken == 0
    console.look("webhooks")
    page.get_by_role("link", name="Revision 3").click()
    page.get_by_role("alert").get_by_text("nothing_like_it").first.wait_for()
    console.look("broken build")
    endpoint = up.client.endpoint("chat")
    assert endpoint["revision"] == 2 and up.call("hi", "chat").json()["outputs"][0]["data"] == ["v2:hi"]
    assert endpoint["settings"]["env"] == {"MOOD": "calm and clear"}
    console.go("/endpoints/chat/revisions")
    page.get_by_text("nothing_like_it").first.wait_for()
    console.look("revisions")
    assert console.violations == [] and console.troubles == []

"""The log's tab with 100,000 lines in a real Chromium: the last at once, earlier ones, any by a search, new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from console.conftest import needs_chromium, serious, troubles_of
from stories.conftest import Up, lasting_up, shared_up, write_app  # noqa: F401  (fixtures)

LINES = 100_000
pytestmark = [pytest.mark.process, needs_chromium]


SLOWLY = """
const fast = window.fetch;
window.fetch = async (resource, how) => {
  const reply = await fast(resource, how);
  if (!String(resource).includes("lines=100000")) return reply;
  let pieces = 0;
  const slow = new TransformStream({ async transform(piece, out) {
    out.enqueue(piece.slice(0, 20_000));
    if (!pieces++) await new Promise((resolve) => setTimeout(resolve, 1500));
    out.enqueue(piece.slice(20_000));
  } });
  return new Response(reply.body.pipeThrough(slow), reply);
};
"""


@pytest.fixture(scope="module")
def long_log(shared_up: Up, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The log of a replica of `app`, which is deployed."""
    shared_up.deploy(write_app(tmp_path_factory.mktemp("long") / "app"))
    path = shared_up.home.folder("logs", "endpoints", "app") / "app-0a1b2c3d.log"
    path.write_text("".join(f"INFO request {number:06d} answered\n" for number in range(LINES)))
    return path


@pytest.mark.usefixtures("long_log")
def test_earlier_lines_that_come_slowly_are_shown(shared_up: Up, browser: Any) -> None:  # noqa: F811
    page = browser.new_page()
    page.add_init_script(SLOWLY)
    page.goto(shared_up.client.console_link()["url"])
    page.get_by_role("link", name="app", exact=True).wait_for()
    page.goto(f"{shared_up.url}/#/endpoints/app/logs")
    log, earlier = page.get_by_role("log"), page.get_by_role("button", name="Show earlier lines")
    log.get_by_text("request 099999").wait_for()
    for oldest in ("098500", "097500", "096500"):
        earlier.click()
        log.get_by_text(f"request {oldest}").wait_for()
        log.get_by_text("request 099999").wait_for()
    assert log.evaluate("e => e.childElementCount") == 4000


def test_a_log_of_any_length_is_usable(shared_up: Up, long_log: Path, browser: Any) -> None:  # noqa: F811
    page = browser.new_page()
    troubles = troubles_of(page)
    page.goto(shared_up.client.console_link()["url"])
    page.get_by_role("link", name="app", exact=True).wait_for()
    page.goto(f"{shared_up.url}/#/endpoints/app/logs")
    log = page.get_by_role("log")
    log.get_by_text("request 099999").wait_for()
    count = "e => e.childElementCount"
    assert log.evaluate(count) == 1000 and log.get_by_text("request 098999").count() == 0
    assert log.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") < 50  # the end is what is seen

    page.get_by_role("button", name="Show earlier lines").click()
    log.get_by_text("request 098999").wait_for()
    page.get_by_role("button", name="Show earlier lines").click()
    log.get_by_text("request 097500").wait_for()
    assert 2000 < log.evaluate(count) <= 3000

    page.get_by_label("Search").fill("request 000007")
    log.get_by_text("request 000007").wait_for()
    assert log.locator("mark").count() == 1 and page.get_by_text("1 line of 100,0").is_visible()

    page.get_by_label("Search").fill("new and wanted")
    log.get_by_text("No line fits.").wait_for()
    with long_log.open("a") as file:
        file.write("INFO something else\nINFO new and wanted\n")
    log.get_by_text("new and wanted").wait_for()
    assert log.evaluate(count) == 1
    page.get_by_label("Search").fill("")
    page.get_by_label("Follow").uncheck()
    log.get_by_text("something else").wait_for()
    with long_log.open("a") as file:
        file.write("INFO not yet\n")
    page.get_by_text("not followed").wait_for()
    assert log.get_by_text("not yet").count() == 0
    page.get_by_label("Follow").check()
    log.get_by_text("not yet").wait_for()
    page.get_by_label("Replica").select_option("app-0a1b2c3d")
    page.wait_for_timeout(500)
    log.get_by_text("INFO not yet").wait_for()
    assert "|" not in log.inner_text() and serious(page) == [] and troubles == []

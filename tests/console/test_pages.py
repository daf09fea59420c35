"""Pages of the console in a real Chromium: volumes, runtimes, a run and its model, an endpoint's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from console.conftest import needs_chromium, serious, troubles_of
from control.runs import make_run, merge
from stories.conftest import Up, lasting_up, shared_up, write_app  # noqa: F401  (fixtures)

pytestmark = [pytest.mark.process, needs_chromium]
WAIT_MS = 60_000
STREAMING = """
import time
class InferlessPythonModel:
    def initialize(self): pass
    def infer(self, inputs, stream_output_handler):
        for word in inputs["prompt"].split():
            stream_output_handler.send_streamed_output({"OUT": word + " "})
            time.sleep(0.02)
            if word == "wait":
                time.sleep(30)
        stream_output_handler.finalise_streamed_output()
    def finalize(self): pass
"""


@pytest.fixture
def page(shared_up: Up, browser: Any) -> Iterator[Any]:  # noqa: F811
    """A page that is signed in; at the end it has had no trouble, and what it showed last is fit for everybody."""
    opened = browser.new_page()
    opened.set_default_timeout(WAIT_MS)
    troubles = troubles_of(opened)
    opened.goto(shared_up.client.console_link()["url"])
    opened.get_by_role("link", name="Sign out").or_(opened.get_by_role("button", name="Sign out")).wait_for()
    yield opened
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        assert serious(opened) == []
    opened.set_viewport_size({"width": 380, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 380
    # The browser itself writes a line for every reply with an error, shown or not: some of these tests ask for one.
    assert [t for t in troubles if "the server responded with a status of 4" not in t] == []


def see(up: Up, page: Any, path: str) -> None:
    page.goto(f"{up.url}/#{path}")


def test_a_volume_is_made_filled_read_and_emptied(shared_up: Up, page: Any, tmp_path: Path) -> None:  # noqa: F811
    see(shared_up, page, "/volumes")
    page.get_by_role("heading", name="There is no volume yet").wait_for()
    page.get_by_role("button", name="New volume").click()
    page.get_by_label("Name").fill("not/a name")
    page.get_by_role("button", name="Create").click()
    page.get_by_role("alert").wait_for()
    page.get_by_label("Name").fill("weights")
    page.get_by_role("button", name="Create").click()
    page.get_by_text("Nothing is in it yet").wait_for()
    (tmp_path / "a file.bin").write_bytes(b"\0\1\2" * 1000)
    page.get_by_label("Upload files").set_input_files(tmp_path / "a file.bin")
    page.get_by_role("rowheader", name="a file.bin").wait_for()
    assert b"".join(shared_up.client.volume_file("weights", "a file.bin")) == b"\0\1\2" * 1000
    with page.expect_download() as coming:
        page.get_by_role("button", name="Download a file.bin").click()
    assert Path(coming.value.path()).read_bytes() == b"\0\1\2" * 1000
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    (folder / "words.txt").write_text("llama\n")
    page.get_by_label("Or a folder").set_input_files(folder)
    page.get_by_role("link", name="vocabulary/").click()
    page.get_by_role("rowheader", name="words.txt").wait_for()
    page.get_by_role("link", name="weights").click()
    page.get_by_role("button", name="Remove a file.bin").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("rowheader", name="a file.bin").wait_for(state="detached")
    assert [e["path"] for e in shared_up.client.volume_entries("weights")] == ["vocabulary"]
    see(shared_up, page, "/volumes")
    page.get_by_role("button", name="Delete the volume weights").click()
    page.get_by_label("Type weights to go on").fill("weights")
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("heading", name="There is no volume yet").wait_for()
    assert shared_up.client.volumes() == []


def test_a_runtime_is_checked_built_and_compared_with_the_next(shared_up: Up, page: Any, tmp_path: Path) -> None:  # noqa: F811
    see(shared_up, page, "/runtimes")
    page.get_by_role("heading", name="There is no runtime yet").wait_for()
    page.get_by_label("Name").fill("tools")
    page.get_by_label("Runtime file").fill("build:\n  python_pakages: []\n")
    page.get_by_role("button", name="Upload and build").click()
    page.get_by_role("alert").get_by_text("python_packages").first.wait_for()
    page.get_by_label("Runtime file").fill("build:\n  python_packages: []\n")
    page.get_by_role("button", name="Upload and build").click()
    page.get_by_role("heading", name="Runtime tools, version 1").wait_for()
    page.get_by_role("link", name="Open", exact=True).click()
    page.get_by_role("heading", name="A new version of tools").wait_for()
    file = tmp_path / "next.yaml"
    file.write_text("build:\n  python_packages: []\n  system_packages: []\n  run: ['true']\n")
    page.get_by_label("Choose a file").set_input_files(file)
    page.get_by_text("Fine: 0 packages").wait_for()
    page.get_by_role("button", name="Upload and build").click()
    page.get_by_role("heading", name="Runtime tools, version 2").wait_for()
    see(shared_up, page, "/runtimes/tools/2")
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("The file").get_by_text("+  run: ['true']").wait_for()


def test_a_run_is_published_and_its_model_gets_an_alias(shared_up: Up, page: Any) -> None:  # noqa: F811
    see(shared_up, page, "/runs")
    page.get_by_role("heading", name="Nothing has been trained yet").wait_for()
    run = make_run(shared_up.home)
    page.get_by_role("link", name="tiny-1").click(timeout=20_000)  # it appears without a reload
    page.get_by_text("a machine that learns").wait_for()
    page.get_by_role("img", name="Loss").wait_for()
    assert page.get_by_role("button", name="Deploy").is_disabled()
    page.get_by_role("button", name="Publish").click()
    page.get_by_label("What").select_option("model")
    page.get_by_role("dialog").get_by_role("button", name="Publish").click()
    page.get_by_role("alert").get_by_text("has not been merged").wait_for()
    page.keyboard.press("Escape")
    merge(shared_up.home, run)
    page.get_by_text("verified: it is the trained model").wait_for(timeout=20_000)
    page.get_by_role("button", name="Publish").click()
    page.get_by_label("Name").fill("acme/tiny")
    page.get_by_role("dialog").get_by_role("button", name="Publish").click()
    page.get_by_role("heading", name="Publish tiny-1").wait_for()
    page.get_by_role("link", name="Open the models").click()
    page.get_by_role("heading", name="acme/tiny").wait_for()
    page.get_by_role("link", name="tiny-1").wait_for()
    page.get_by_role("button", name="Add an alias to version 1").click()
    page.get_by_label("Alias", exact=True).fill("champion")
    page.get_by_role("button", name="Set").click()
    page.get_by_role("button", name="Remove the alias champion").wait_for()
    assert shared_up.client.models()[0]["aliases"] == ["champion", "latest"]
    assert page.get_by_role("link", name="Deploy acme/tiny").get_attribute("href") == "#/deploy?model=acme%2Ftiny"


def test_the_buttons_of_a_run_queue_a_merge(shared_up: Up, page: Any) -> None:  # noqa: F811
    make_run(shared_up.home)
    see(shared_up, page, "/runs/tiny-2")
    page.get_by_role("button", name="Merge").click()
    page.get_by_label("Base").select_option("original")
    page.get_by_role("dialog").get_by_role("button", name="Merge").click()
    page.get_by_role("heading", name="Merge of tiny-2").wait_for()
    # The adapter of this run is seven bytes: the command itself says why it cannot be merged, and the page shows it.
    page.get_by_role("alert").wait_for()
    assert "$ puna merge --base original -- tiny-2" in page.get_by_role("log").inner_text()
    assert page.get_by_role("button", name="Retry").is_visible()


@pytest.fixture(scope="module")
def app(shared_up: Up, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A streaming app that serves as `app`, and a folder for its volume's mount."""
    root = tmp_path_factory.mktemp("app")
    folder = write_app(root / "app")
    (folder / "app.py").write_text(STREAMING)
    with (folder / "input_schema.py").open("a") as schema:
        schema.write("IS_STREAMING_OUTPUT = True\n")
    shared_up.deploy(folder, env={"API_KEY": "hidden"})
    return root


def test_settings_act_at_once_or_make_a_revision(shared_up: Up, page: Any, app: Path) -> None:  # noqa: F811
    client = shared_up.client
    client.create_volume("notes")
    number = len(client.endpoint("app")["revisions"]) + 1
    see(shared_up, page, "/endpoints/app/settings")
    page.get_by_label("Replicas at most").fill("3")
    page.get_by_text("At once: replicas at most.").wait_for()
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved; it acts at once").wait_for()
    now = client.endpoint("app")
    assert now["settings"]["max_replica"] == 3 and len(now["revisions"]) == number - 1
    page.get_by_label("Replicas at least").fill("9")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("alert").get_by_text("min_replica must lie in 0 to max_replica").wait_for()
    page.get_by_label("Replicas at least").fill("0")
    page.get_by_role("button", name="Add a variable").click()
    page.get_by_label("Variable's name").last.fill("MODE")
    page.get_by_label("Variable's value").last.fill("fast")
    page.get_by_label("Where notes is mounted").fill(str(app / "mounted"))
    page.get_by_label("notes", exact=True).check()
    page.get_by_text("By a new revision: variables, volumes.").wait_for()
    page.get_by_role("button", name="Save").click()
    page.get_by_text(f"Saved; revision {number} is coming").wait_for()
    now = client.endpoint("app")
    assert now["settings"]["env"] == {"API_KEY": "***", "MODE": "fast"} and "notes" in now["settings"]["volumes"]
    client.wait_for_endpoint("app", number, 60)


def test_revisions_are_compared_share_the_requests_and_come_back(shared_up: Up, page: Any, app: Path) -> None:  # noqa: F811
    client = shared_up.client
    old = client.endpoint("app")["revision"]
    new = client.patch("app", env={"SPEED": "high"})["changed_revision"]
    client.wait_for_endpoint("app", new, 60)
    see(shared_up, page, "/endpoints/app/revisions")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("rowheader", name="env.SPEED").wait_for()
    page.get_by_label("Percent", exact=True).fill("30")
    page.get_by_text(f"30 % to revision {old}, 70 % to revision {new}").wait_for()
    page.get_by_role("button", name="Divide the requests").click()
    page.get_by_role("button", name=f"Promote revision {old}").wait_for()
    assert {s["revision"]: s["percent"] for s in client.endpoint("app")["traffic"]} == {new: 70, old: 30}
    page.get_by_role("button", name=f"Take it back: all to revision {new}").click()
    page.get_by_role("button", name=f"Roll back to revision {old}").click()
    page.get_by_text(f"Revision {old} is rolled out again").wait_for()
    client.wait_for_endpoint("app", old, 60)


def test_the_playground_shows_a_stream_as_it_comes_and_stops_it(shared_up: Up, page: Any, app: Path) -> None:  # noqa: F811
    see(shared_up, page, "/endpoints/app/playground")
    page.get_by_label("prompt").fill("llamas graze high")
    page.get_by_role("button", name="Send").click()
    page.get_by_label("Reply", exact=True).get_by_text("llamas graze high").wait_for()
    page.get_by_text("Events/s").wait_for()
    page.get_by_label("prompt").fill("now wait for ever")
    page.get_by_role("button", name="Send").click()
    page.get_by_label("Reply", exact=True).get_by_text("now wait").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("cell", name="stopped").wait_for()
    page.get_by_role("button", name="JSON").click()
    assert '"now wait for ever"' in page.get_by_label("Body").input_value()
    page.get_by_text("As code").click()
    page.get_by_text("client.infer(").wait_for()
    page.get_by_role("link", name="-").last.click()  # a request's id leads to its lines in the log
    page.get_by_label("Search").wait_for()
    assert page.get_by_label("Search").input_value()

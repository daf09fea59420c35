"""The report: one picture, one page that needs nothing else, whatever the run has got to."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from puna.artifacts import Dataset
from puna.train.reporting.record import Run
from puna.train.reporting.report import TABLE_ROWS, draw, write_report
from puna.train.run import train
from train.tiny import make_recipe

VOID = {"meta", "br", "img", "circle", "path"}


class Page(HTMLParser):
    """Tags opened and closed in order, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def lines(steps: int) -> list[dict]:
    every = [{"step": s, "loss": 4 / s + 1, "lr": 1e-4 * (1 - s / steps)} for s in range(1, steps + 1)]
    return [{"step": 0, "eval_loss": 5.0}, *every, {"step": steps, "eval_loss": 1.4}]


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.write_recipe(make_recipe())
    run.begin(8)
    return run


def test_a_run_on_its_way_has_a_report_too(begun: Run) -> None:
    (begun.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(8)))
    sample = {"prompt": "<script>alert(1)</script>", "before": "a", "after": "b", "reference": "c"}
    (begun.path / "samples.json").write_text(json.dumps([sample]))
    write_report(begun.path)
    page = (begun.path / "report.html").read_text()
    assert (begun.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "running · step 0 of 8" in page and "learning_rate" in page
    assert "from 5.000 at step 0" in page and "step 2: training 3.0000" in page
    assert "all 10 log lines" in page


def test_of_many_log_lines_so_many_are_shown_as_fit_a_page(begun: Run) -> None:
    (begun.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(5000)))
    write_report(begun.path)
    page = (begun.path / "report.html").read_text()
    assert f"{TABLE_ROWS} of 5002 log lines" in page
    table = page.partition("of 5002 log lines")[2].partition("</table>")[0]
    assert table.count("<tr>") == TABLE_ROWS + 1  # and the names of the columns


def test_a_failed_run_says_why_and_one_without_figures_has_a_page(begun: Run) -> None:
    begun.end("failed", "step 3: loss nan: training has <diverged>")
    write_report(begun.path)
    page = (begun.path / "report.html").read_text()
    assert "training has &lt;diverged&gt;" in page and "<figure" not in page


def test_a_plan_of_another_version_is_shown_by_its_reasons(begun: Run) -> None:
    (begun.path / "plan.json").write_text(json.dumps({"seconds": 8.0, "reasons": ["as <it> was"]}))
    write_report(begun.path)
    assert "<li>as &lt;it&gt; was</li>" in (begun.path / "report.html").read_text()


def test_a_real_runs_page_is_whole_and_needs_no_other_file(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    train(make_recipe(training={"max_steps": 4}), base_dir, dataset, tmp_path / "run", device="cpu")
    text = (tmp_path / "run" / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and "script" not in page.tags
    assert not re.search(r"https?:|//|url\(|@import", text), "nothing is fetched"
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    # Loss is drawn twice, wide and narrow; then rate, norm, speed, memory.
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert len(labels) == 6 and all(label and "at step 4" in label for label in labels)
    assert text.count("<title>step 4: ") == 8
    assert page.tags.count("th") > 20 and 'scope="col">planned' in text and 'scope="row">speed (tokens/s)' in text
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    assert "after training" in text and "w23" in text, "replies beside the reference"


def test_without_metrics_there_is_still_a_picture() -> None:
    assert draw([], "empty").startswith(b"\x89PNG")

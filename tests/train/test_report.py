"""The report: one picture, one page that needs nothing else, whatever the run has got to."""

import json
from pathlib import Path

from puna.train.record import Run
from puna.train.report import draw, write_report
from train.tiny import make_recipe


def lines(steps: int) -> list[dict]:
    every = [{"step": s, "loss": 4 / s + 1, "lr": 1e-4 * (1 - s / steps)} for s in range(1, steps + 1)]
    return [{"step": 0, "eval_loss": 5.0}, *every, {"step": steps, "eval_loss": 1.4}]


def test_a_run_on_its_way_has_a_report_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_recipe(make_recipe())
    run.begin(8)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(8)))
    sample = {"prompt": "<script>alert(1)</script>", "before": "a", "after": "b", "reference": "c"}
    (tmp_path / "samples.json").write_text(json.dumps([sample]))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "&lt;script&gt;" in page and "<script" not in page
    assert "data:image/png;base64," in page and "learning_rate" in page and "http" not in page


def test_without_metrics_there_is_still_a_picture() -> None:
    assert draw([], "empty").startswith(b"\x89PNG")

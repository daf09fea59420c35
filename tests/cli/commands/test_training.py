"""`puna train --dry-run`: what is learnt from, what it takes, how long; for a person and as data."""

import json
import re
import time
from pathlib import Path

import pytest

from puna.cli.commands import training
from puna.cli.main import run
from puna.config import recipe as recipes
from puna.home import Home
from puna.train.reporting.record import Run, new_run_dir

RECIPE = """
name: tiny
base: demo
data: {dataset: demo, take: 60, test_fraction: 0.1, max_length: 70, processes: 1}
lora: {lora_r: 4, lora_alpha: 8, lora_dropout: 0}
training: {per_device_train_batch_size: 2, gradient_accumulation_steps: 2, max_steps: 5, learning_rate: 1.0e-3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry run")
    (folder / "my recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(folder / "home"))
    return folder / "home"


def test_a_person_sees_data_plan_and_time(folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(folder / "my recipe.yaml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert [h for h in ("Data", "One row", "Plan", "Time") if f"\n{h}" in out] == ["Data", "One row", "Plan", "Time"]
    assert "54 to learn from, 6 held out" in out and re.search(r"cut +\d+ rows \(\d+\.\d%\) at 70 tokens", out)
    counts = [int(n) for n in re.findall(r"^ +\d+-\d+ .* (\d+)$", out, re.M)]
    assert sum(counts) == 60 and "█" in out
    assert "<|im_start|>assistant\n[" in out and "<|im_end|>]" in out
    assert re.search(r"about [\d.]+ s: 5 steps", out) and "\n- " in out
    assert out.endswith(f"next: puna train '{folder}/my recipe.yaml'\n")
    assert "{" not in out, "nothing raw"
    assert not list((home / "runs").glob("*")), "nothing is trained"


def test_a_program_gets_everything_as_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(folder / "my recipe.yaml"), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"]["rows_train"] == 54 and sum(told["data"]["length_histogram"]["rows"]) == 60
    assert told["plan"]["steps"] == 5 and told["plan"]["reasons"]
    assert any(token["learnt"] for token in told["preview"]) and not told["preview"][0]["learnt"]


def test_rows_that_are_left_out_or_skipped_are_said() -> None:
    figures = {
        "rows_train": 9, "rows_test": 1, "tokens_train": 1234, "tokens_test": 5, "labelled_share": 0.25,
        "lengths": {"p50": 1, "p90": 2, "p99": 3, "max": 2024}, "skipped_rows": 2, "unlearnable_rows": 3,
    }  # fmt: skip
    lines = dict(training.data_lines(figures, 2024))
    assert lines["left out"].startswith("3 rows") and lines["skipped"] == "2 malformed rows"
    assert lines["cut"] == "no row at 2,024 tokens" and "25%" in lines["learnt"] and "1,234" in lines["tokens"]


PLAN = {"device": "cpu", "tokens_per_s": 1500.0, "tokens_train": 90, "rows_train": 9, "rows_per_step": 3,
        "memory": {"total": 2**31}, "seconds": 9.0, "reasons": []}  # fmt: skip


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path))
    made = Run(new_run_dir(Home(tmp_path), recipes.parse({"name": "tiny", "base": "demo"})))
    made.begin(1000)
    now = time.time() + 1
    lines = [
        {"step": 0, "eval_loss": 5.0, "time": now},
        {"step": 50, "loss": 2.5, "lr": 2e-4, "grad_norm": 0.75, "tokens_per_s": 1200.0, "memory_bytes": 2**30,
         "time": now + 50},
        {"step": 100, "loss": 1.25, "lr": 1e-4, "grad_norm": 0.5, "tokens_per_s": 1200.0, "memory_bytes": 2**30,
         "eval_loss": 1.5, "time": now + 100},
    ]  # fmt: skip
    (made.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (made.path / "plan.json").write_text(json.dumps(PLAN))
    made.write_status(step=100)
    return made


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert run(list(words)) == 0
    return capsys.readouterr().out


def test_a_running_run_says_its_loss_speed_and_time_left(begun: Run, capsys: pytest.CaptureFixture[str]) -> None:
    row = told(capsys, "runs").splitlines()[-2].split("  ")
    assert [cell.strip() for cell in row if cell.strip()] == [
        "tiny-1", "running", "100/1,000", "1.2500", "1.5000", "1,200", "15 min left"
    ]  # fmt: skip
    (data,) = json.loads(told(capsys, "runs", "--json"))
    assert data["seconds_left"] == pytest.approx(900) and (data["loss"], data["eval_loss"]) == (1.25, 1.5)


def test_one_run_shows_where_it_came_from_and_how_the_plan_held(begun: Run, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "run", "show", "tiny")
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "100 of 1,000 (10%)" in lines["step"] and "15 min left" in lines["time"]
    assert "1.2500, from 2.5000 at step 50" in lines["training loss"] and "from 5.0000 at step 0" in out
    assert "1,200 tokens/s (planned 1,500, -20%)" in lines["speed"]
    assert "1.00 GiB (planned 2.00, -50%)" in lines["peak memory"]
    assert "•" in out and "report: " in out and out.endswith("next: puna run show tiny-1\n")
    data = json.loads(told(capsys, "run", "show", "tiny", "--json"))
    assert data["plan_against_measured"][0]["error"] == pytest.approx(-0.2) and len(data["metrics"]) == 3


def test_each_end_of_a_run_names_what_to_type_next(begun: Run, capsys: pytest.CaptureFixture[str]) -> None:
    begun.end("failed", "step 3: loss nan")
    out = told(capsys, "run", "show", "last", "--no-report")
    assert "failed: step 3: loss nan" in out and "took" in out and "next:" not in out
    (begun.path / "checkpoints" / "step-000050").mkdir(parents=True)
    assert told(capsys, "run", "show", "last", "--no-report").endswith("next: puna train RECIPE --resume tiny-1\n")
    begun.end("finished")
    assert told(capsys, "run", "show", "last", "--no-report").endswith("next: puna merge tiny-1\n")


def test_without_runs_the_list_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path))
    assert told(capsys, "runs") == "no runs yet: puna train RECIPE\n"

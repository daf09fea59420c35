"""`puna train --dry-run`: what is learnt from, what it takes, how long; for a person and as data."""

import json
import re
from pathlib import Path

import pytest

from puna.cli import dry_run
from puna.cli.main import run

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
    lines = dict(dry_run.data_lines(figures, 2024))
    assert lines["left out"].startswith("3 rows") and lines["skipped"] == "2 malformed rows"
    assert lines["cut"] == "no row at 2,024 tokens" and "25%" in lines["learnt"] and "1,234" in lines["tokens"]

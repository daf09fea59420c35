"""The training benchmark on the tiny shape: what it measures, writes down, and says of trainers that are not there."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PUNA = "puna-dropout-0"
RECOMPUTED, REFUSED = f"{PUNA}+training.recompute_layers=1", f"{PUNA}+training.no_such_key=1"


def bench(folder: Path, *words: str, code: int = 0) -> tuple[str, dict[str, Any]]:
    """What a call prints, and its results file."""
    out = folder / "results.json"
    # Steps of 16 short rows: what is tested is the bookkeeping, not the speed.
    fixed = ["--shape", "tiny", "--steps", "3", "--warm", "1", "--work", str(folder / "work"), "--out", str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "bench" / "train.py"), *fixed, *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, json.loads(out.read_text()) if out.exists() else {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the base and the results of all calls."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[str, dict[str, Any]]:
    """Puna twice, the second time with a layer recomputed; a recipe that is refused; a trainer that is not there."""
    return bench(folder, "--only", PUNA, RECOMPUTED, REFUSED, "unsloth-dropout-0", code=1)


def test_every_result_has_its_figures_and_all_that_they_depend_on(measured: tuple[str, dict[str, Any]]) -> None:
    printed, found = measured
    assert printed.count("RESULT ") == len(found["results"]) == 4
    assert found["machine"]["slug"] == "cpu" and found["written"]
    for result in (found["results"][name] for name in (PUNA, RECOMPUTED)):
        assert result["state"] == "measured"
        assert result["settings"]["steps"] == len(result["steps"]) == result["steps_measured"] == 3
        assert result["settings"]["warm"] == 1 and result["settings"]["rows_per_step"] == 16
        assert {"torch", "transformers", "trl", "unsloth", "flash-attn-4"} < set(result["versions"])
        assert result["recipe"]["training"]["optim"] == "paged_adamw_8bit"
        assert result["date"] and result["peak_allocated_bytes"] > 0 and result["ceiling"]["flops_per_s"] > 0


def test_the_figures_agree_with_each_other(measured: tuple[str, dict[str, Any]]) -> None:
    results = measured[1]["results"]
    puna, recomputed = results[PUNA], results[RECOMPUTED]
    for result in (puna, recomputed):
        tokens, seconds = (sum(step[key] for step in result["steps"]) for key in ("tokens", "seconds"))
        assert result["tokens_per_s"] == pytest.approx(tokens / seconds)
        assert result["seconds_per_step"] == pytest.approx(seconds / 3)
        share = result["tokens_per_s"] * result["flops_per_token"] / result["ceiling"]["flops_per_s"]
        assert result["share_of_ceiling"] == pytest.approx(share)
        assert result["to_puna"]["reference"] == PUNA
        assert result["to_puna"]["ratio"] == pytest.approx(result["tokens_per_s"] / puna["tokens_per_s"])
        for foreseen in result["foreseen"].values():
            assert foreseen["error"] == pytest.approx(foreseen["foreseen"] / foreseen["measured"] - 1)
    assert puna["to_puna"]["ratio"] == 1
    assert [step["tokens"] for step in puna["steps"]] == [step["tokens"] for step in recomputed["steps"]]
    assert recomputed["plan"]["recompute_layers"] == 1 and puna["plan"]["recompute_layers"] == 0
    assert puna["flops_per_token"] == pytest.approx(puna["plan"]["flops_per_token"])


def test_tokens_are_counted_for_the_rows_that_the_run_took_in_each_step(measured: tuple[str, dict[str, Any]]) -> None:
    puna = measured[1]["results"][PUNA]
    steps = {step["step"]: step["tokens"] for step in puna["warm_up"] + puna["steps"]}
    assert sorted(steps) == [2, 3, 4]
    # What is left of the run's own count is the first step's.
    assert 16 * 8 <= puna["plan"]["tokens_train"] - sum(steps.values()) <= 16 * 253
    assert len(set(steps.values())) == 3


def test_a_refused_recipe_is_written_down_with_the_last_lines_and_the_others_go_on(
    measured: tuple[str, dict[str, Any]],
) -> None:
    printed, found = measured
    assert found["results"][REFUSED]["state"] == "failed"
    assert "unknown key `training.no_such_key`" in found["results"][REFUSED]["last_lines"][-1]
    assert f"RESULT {REFUSED}: failed; puna.errors.RecipeError" in printed


@pytest.mark.skipif(find_spec("unsloth") is not None, reason="Unsloth is installed")
def test_a_trainer_that_is_not_installed_is_absent_and_what_to_type_is_said(
    measured: tuple[str, dict[str, Any]],
) -> None:
    printed, found = measured
    assert found["results"]["unsloth-dropout-0"]["state"] == "absent"
    assert "RESULT unsloth-dropout-0: absent; pip install unsloth" in printed


@pytest.mark.usefixtures("measured")
def test_merging_keeps_what_was_there_and_adds_how_far_two_loss_curves_are_apart(folder: Path) -> None:
    printed, found = bench(folder, "--merge", "--losses", PUNA, f"{PUNA}+lora.lora_r=8")
    assert found["results"][PUNA]["to_puna"]["ratio"] == 1
    ((_, pair),) = found["losses"].items()
    one, other = (result["losses"] for result in pair["of"])
    apart = pair["largest_relative_difference"]
    assert len(one) == len(other) == 4 and "RESULT losses" in printed
    assert apart["raw"] == pytest.approx(max(abs(a - b) / a for a, b in zip(one, other, strict=True)))
    assert apart["smoothed"] <= apart["raw"]

"""Runs and merged models as training and merging leave them, with weights of a few bytes."""

from __future__ import annotations

import json
from typing import Any

from puna.artifacts import Model, drafting
from puna.config import recipe as recipes
from puna.home import Home
from puna.train.reporting import record

PASSED = {"passed": True, "reasons": [], "merged_loss": 1.5, "trained_loss": 1.5, "mean_kl": 0.0, "same_top": 1.0}


def make_run(home: Home, state: str = "finished") -> record.Run:
    """A run of two steps."""
    path = record.new_run_dir(home, recipes.parse({"name": "tiny", "base": "demo"}))
    run = record.Run(path)
    run.begin(steps=2)
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "time": 1}\n{"step": 2, "loss": 1.5, "time": 2}\n')
    sample = {"prompt": "What is AI?", "before": "a llama", "after": "a machine", "reference": "a machine that learns"}
    (path / "samples.json").write_text(json.dumps([sample]))
    run.write_status(step=2)
    if state == "finished":
        with drafting("adapter", path, "adapter") as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"adapter")
        run.end("finished")
    return run


def merge(home: Home, run: record.Run, **verification: Any) -> Model:
    """What `puna merge` leaves, without its hours."""
    assert run.adapter is not None
    with drafting("model", home.models) as draft:
        (draft.path / "model.safetensors").write_bytes(b"merged weights")
        draft.made_from = {"base": "demo", "adapter": run.adapter.digest}
    model = Model.open(draft.final)
    merged = {"model": model.path.name, "verification": PASSED | verification, "why": "original"}
    (run.path / "merge.json").write_text(json.dumps(merged))
    return model

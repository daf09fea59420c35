"""Run folders: the records of a training run, read and listed without torch, and compared with its plan."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from puna.artifacts import Adapter, write_json, write_text
from puna.config.recipe import Recipe
from puna.errors import NotFoundError, nearest
from puna.home import Home
from puna.process import tree


@dataclass(frozen=True)
class Status:
    """A run's progress; `state` is running, finished, failed or interrupted."""

    state: str
    pid: int = 0
    step: int = 0
    steps: int = 0
    started: str = ""
    ended: str = ""
    error: str = ""
    process_started: str = ""
    """The kernel's start time of `pid`, so that a recycled process id is not taken for a live run."""
    process_began: str = ""
    """When `pid` began or resumed the run."""


@dataclass(frozen=True)
class Run:
    """One run's folder; every property reads the disk anew."""

    path: Path

    @property
    def name(self) -> str:
        """`<recipe>-<n>`."""
        return self.path.name

    @property
    def status(self) -> Status:
        """The last status written; `interrupted` when it says running but its process is gone."""
        values = _json(self.path / "status.json", {})
        known = {k: values[k] for k in Status.__dataclass_fields__ if k in values}
        status = Status(**({"state": "interrupted"} | known))
        if status.state == "running" and not _alive(status):
            return Status(**(status.__dict__ | {"state": "interrupted"}))
        return status

    @property
    def state(self) -> str:
        """Running, finished, failed or interrupted."""
        return self.status.state

    def seconds(self) -> float | None:
        """From the run's first start to its end, or to now while it runs; pauses between processes count."""
        status = self.status
        began, ended = _timestamp(status.started), _timestamp(status.ended)
        if status.state == "running":
            ended = time.time()
        return None if began is None or ended is None else ended - began

    def seconds_left(self) -> float | None:
        """Seconds a running run still needs: at this process's pace, or as planned before two lines tell one."""
        status = self.status
        if status.state != "running" or not status.steps:
            return None
        began = _timestamp(status.process_began) or 0.0
        lines = [line for line in self.metrics() if line.get("time", 0.0) >= began]
        remaining = max(0, status.steps - status.step)
        if len(lines) > 1 and lines[-1]["step"] > lines[0]["step"]:
            steps = lines[-1]["step"] - lines[0]["step"]
            return float(remaining * (lines[-1]["time"] - lines[0]["time"]) / steps)
        planned = self.plan.get("seconds")
        return None if planned is None else float(planned) * remaining / status.steps

    @property
    def recipe(self) -> dict[str, Any]:
        """The values of the recipe that the run was started with; `puna.config.recipe.parse` reads them.

        Raises:
            NotFoundError: the folder is no run.
        """
        values = _json(self.path / "recipe.json", None)
        if values is None:
            raise NotFoundError(f"run {self.name} holds no recipe.json", "puna runs")
        return dict(values)

    @property
    def plan(self) -> dict[str, Any]:
        """The plan that the run follows; empty before it was made."""
        return dict(_json(self.path / "plan.json", {}))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a half-written last line is left out."""
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def last(self) -> dict[str, Any]:
        """The newest value of every figure: loss, eval_loss, lr and so on."""
        return {key: value for line in self.metrics() for key, value in line.items() if key not in ("step", "time")}

    @property
    def samples(self) -> list[dict[str, str]]:
        """Replies before and after training, beside the reference."""
        return list(_json(self.path / "samples.json", []))

    @property
    def dataset(self) -> str:
        """The dataset's digest."""
        return _text(self.path / "dataset")

    @property
    def base(self) -> str:
        """The base: a folder, or the name it was found by."""
        return _text(self.path / "base")

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that the run made, once it is finished."""
        return Adapter.open(self.path / "adapter") if (self.path / "adapter" / "manifest.json").exists() else None

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name))

    def write_status(self, **changes: Any) -> None:
        """Change some fields of the status; a reader sees the old status or the new one."""
        write_json(self.path / "status.json", _json(self.path / "status.json", {}) | changes)

    def begin(self, steps: int) -> None:
        """Say that this process runs the run from now on."""
        pid, now = os.getpid(), datetime.now(UTC).isoformat()
        fresh = {"state": "running", "pid": pid, "steps": steps, "ended": "", "error": ""}
        times = {"started": self.status.started or now, "process_began": now}
        self.write_status(**fresh, **times, process_started=str(tree.start_ticks(pid)))

    def end(self, state: str, error: str = "") -> None:
        """Say how the run ended."""
        self.write_status(state=state, error=error, ended=datetime.now(UTC).isoformat())

    def write_recipe(self, recipe: Recipe) -> None:
        """Keep the recipe: as values for programs, as YAML for people."""
        write_json(self.path / "recipe.json", recipe.as_dict())
        write_text(self.path / "recipe.yaml", yaml.safe_dump(recipe.as_dict(), sort_keys=False))


def new_run_dir(home: Home, recipe: Recipe) -> Path:
    """A fresh folder `<recipe name>-<n>`, n counting up from 1; two callers never get the same one."""
    taken = [int(p.name.rsplit("-", 1)[1]) for p in home.runs.glob("*-*") if _is_run_of(recipe.name, p.name)]
    number = max(taken, default=0) + 1
    while True:
        path = home.runs / f"{recipe.name}-{number}"
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
            continue
        Run(path).write_recipe(recipe)
        return path


def list_runs(home: Home) -> list[Run]:
    """Every run, newest last."""
    found = [p for p in home.runs.iterdir() if (p / "recipe.json").exists()]
    return [Run(p) for p in sorted(found, key=lambda p: (p / "recipe.json").stat().st_mtime_ns)]


def find_run(home: Home, name: str) -> Run:
    """The run called `name`, or the newest run of the recipe called `name`.

    Raises:
        NotFoundError: there is none.
    """
    runs = list_runs(home)
    exact = [run for run in runs if run.name == name]
    found = exact or [run for run in runs if _is_run_of(name, run.name)]
    if not found:
        hint = nearest(name, [run.name for run in runs]) or "puna runs"
        raise NotFoundError(f"there is no run `{name}`", hint)
    return found[-1]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON, without a last one that a crash cut short."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _is_run_of(recipe: str, name: str) -> bool:
    return re.fullmatch(re.escape(recipe) + r"-\d+", name) is not None


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return default


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _timestamp(text: str) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _alive(status: Status) -> bool:
    if not status.process_started:
        return tree.stat(status.pid) is not None
    return tree.is_alive(tree.Process(status.pid, int(status.process_started)))


def figures(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one metrics line, without its step and time: what trackers and progress bars show."""
    return {k: float(v) for k, v in line.items() if k not in ("step", "time") and v is not None}


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `12 min`, `2 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


@dataclass(frozen=True)
class PlanComparison:
    """One figure that was planned and has been measured."""

    name: str
    unit: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """The measured figure's distance from the planned one, as a share of the latter."""
        return self.measured / self.planned - 1


def compare(run: Run) -> list[PlanComparison]:
    """Each figure of the plan that the run has measured so far; a run that was not planned has none."""
    plan, metrics = run.plan, run.metrics()
    speed, memory = mean_speed(metrics), max((line.get("memory_bytes") or 0 for line in metrics), default=0)
    found = []
    if speed and plan.get("tokens_per_s"):
        found.append(PlanComparison("speed", "tokens/s", plan["tokens_per_s"], speed))
        tokens = plan["tokens_train"] / plan["rows_train"] * plan["rows_per_step"]
        found.append(PlanComparison("a step", "s", tokens / plan["tokens_per_s"], tokens / speed))
    if memory and (planned := planned_memory(plan)):
        found.append(PlanComparison("peak memory", "GiB", planned / 2**30, memory / 2**30))
    return found


def planned_memory(plan: Mapping[str, Any]) -> float:
    """The planned bytes of what a run measures: torch's own on a GPU, the whole process on a CPU."""
    sizes = plan.get("memory", {})
    beside = sizes.get("overhead", 0) if str(plan.get("device")).startswith("cuda") else 0
    return float(sizes.get("total", 0) - beside)


def mean_speed(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens a second over all steps: each log line counts by its steps, which have about as many tokens each."""
    steps, cost, before = 0, 0.0, 0
    for line in metrics:
        if line.get("tokens_per_s"):
            steps, cost = steps + line["step"] - before, cost + (line["step"] - before) / line["tokens_per_s"]
            before = line["step"]
    return steps / cost if cost else None

"""The plan held against what was measured: speed, seconds a step, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.train.reporting.record import Run


@dataclass(frozen=True)
class PlanComparison:
    """One figure that was planned and has been measured."""

    name: str
    unit: str
    planned: float
    measured: float

    @property
    def error(self) -> float:
        """How far the measured figure lies from the planned one, as a share of the planned one."""
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

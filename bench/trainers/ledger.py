"""The results file: one machine, every result with its settings, written again after each, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from puna.artifacts import write_json
from trainers.variants import REFERENCES, VARIANTS

GIB = 2**30
COMPARABLE = ("shape", "layers", "steps", "warm", "seed", "rows_per_step", "lengths")
"""The settings that two results must share to be put in proportion."""
HEAD = ("trainer", "real tok/s", "s/step", "peak GiB", "reserved", "to Puna", "of ceiling", "plan: GiB", "plan: time")


@dataclass
class Ledger:
    """Everything measured on one machine."""

    path: Path
    machine: dict[str, Any]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    extrapolations: dict[str, dict[str, Any]] = field(default_factory=dict)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, machine: dict[str, Any], merge: bool) -> Ledger:
        """An empty one, or with `merge` the one at `path`.

        Raises:
            ValueError: the file at `path` is of another machine.
        """
        if not merge or not path.exists():
            return cls(path, machine)
        old = json.loads(path.read_text())
        if old["machine"]["name"] != machine["name"]:
            raise ValueError(f"{path} is of {old['machine']['name']}, this is {machine['name']}: give another --out")
        return cls(path, machine, old["results"], old["extrapolations"], old["losses"])

    def write(self) -> None:
        """Work out what results are to each other, and write the file."""
        for result in self.results.values():
            if result["state"] == "measured":
                self._relate(result)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = {"results": self.results, "extrapolations": self.extrapolations, "losses": self.losses}
        write_json(self.path, {"benchmark": "train", "machine": self.machine, "written": now()} | values)

    def _relate(self, result: dict[str, Any]) -> None:
        rate = result["tokens_per_s"]
        result["share_of_ceiling"] = rate * result["flops_per_token"] / result["ceiling"]["flops_per_s"]
        name = REFERENCES.get(result["variant"]["dropout"], "")
        puna = self.results.get(name, {})
        # Puna's own variants may differ in what they learn; another trainer must learn the same tokens.
        keys = COMPARABLE if result["variant"]["trainer"] == "puna" else (*COMPARABLE, "loss_on")
        alike = puna.get("state") == "measured" and all(puna["settings"][k] == result["settings"][k] for k in keys)
        result["to_puna"] = {"reference": name, "ratio": rate / puna["tokens_per_s"]} if alike else None

    def table(self) -> str:
        """The results for people, columns aligned."""
        order = [variant.name for variant in VARIANTS]
        names = sorted(self.results, key=lambda name: (order.index(name.split("+")[0]), name))
        lines = [HEAD, *(_cells(name, self.results[name]) for name in names)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(HEAD))]
        aligned = [
            "  ".join(c.ljust(w) if at == 0 else c.rjust(w) for at, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        return "\n".join(line.rstrip() for line in aligned)


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def result_line(name: str, result: Mapping[str, Any]) -> str:
    """One result in one line, for whoever reads a log."""
    if result["state"] == "absent":
        return f"RESULT {name}: absent; {result['to_install']}"
    if result["state"] == "failed":
        return f"RESULT {name}: failed; {result['last_lines'][-1] if result['last_lines'] else 'it said nothing'}"
    figures = dict(zip(HEAD, _cells(name, result), strict=True))
    kept = ", ".join(f"{key} {value}" for key, value in figures.items() if key != "trainer" and value not in ("", "-"))
    return f"RESULT {name}: {kept} over {result['steps_measured']} steps"


def _cells(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    if result["state"] != "measured":
        return (name, result["state"], *[""] * (len(HEAD) - 2))
    reserved, related, foreseen = (result.get(key) for key in ("peak_reserved_bytes", "to_puna", "foreseen"))
    return (
        name,
        f"{result['tokens_per_s']:,.0f}",
        f"{result['seconds_per_step']:.3f}",
        f"{result['peak_allocated_bytes'] / GIB:.1f}",
        f"{reserved / GIB:.1f}" if reserved else "-",
        f"{related['ratio']:.2f}" if related else "-",
        f"{result['share_of_ceiling']:.1%}",
        f"{foreseen['memory_bytes']['error']:+.0%}" if foreseen else "-",
        f"{foreseen['seconds_per_step']['error']:+.0%}" if foreseen else "-",
    )

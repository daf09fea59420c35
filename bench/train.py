"""The training benchmark: Puna, TRL and Unsloth on one machine, one model and the same conversations, one by one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

from pairs import add_options, check_options, line, ratio, tree_of
from trainers.job import Job
from trainers.ledger import Ledger, now, result_line
from trainers.variants import NEEDS, VARIANTS, Variant, missing, pick
from trainers.whole_run import curves_apart
from trainers.workload import PRESETS, Workload

from puna.artifacts import write_json

BENCH = Path(__file__).resolve().parent
STEPS = {"speed": (20, 5), "extrapolate": (60, 10), "losses": (49, 1)}
"""Measured steps and steps before them, by task."""
LOSSES_LAYERS = 4
COMPARED = ("median_seconds_per_step", "start_s", "peak_allocated_bytes")
LAST_LINES, SHOWN_LINES = 25, 8
"""Of a failed process: kept in the results file, and shown."""


class JobError(Exception):
    """A job's process ended without a result; `lines` are the last that it wrote."""

    def __init__(self, code: int, lines: Sequence[str]) -> None:
        super().__init__(f"exit code {code}")
        self.code, self.lines = code, lines


@dataclass(frozen=True)
class Bench:
    """What the jobs of one call share."""

    work: Path
    task: str
    workload: Workload
    facts: dict[str, Any]
    ledger: Ledger

    def measure(self, variant: Variant) -> dict[str, Any]:
        """One variant in a process of its own: measured, absent or failed, and all its settings."""
        load = replace(self.workload, loss_on=variant.loss_on or self.workload.loss_on)
        about = {
            "variant": asdict(variant),
            "date": now(),
            "commit": commit(),
            "settings": load.as_dict(),
            "versions": self.facts["versions"],
            "ceiling": self.facts["ceiling"],
            "flops_per_token": self.facts["flops_per_token"][load.loss_on],
        }
        if lacking := missing(variant):
            install = f"pip install {' '.join(NEEDS[variant.trainer])}"
            return about | {"state": "absent", "missing": lacking, "to_install": install}
        folder, base_dir = job_folder(self.work, variant.name), Path(self.facts["base_dir"])
        job = Job(folder, self.task, load, self.work, base_dir, variant)
        started = time.monotonic()
        try:
            return about | {"state": "measured"} | run(job) | {"process_s": round(time.monotonic() - started, 1)}
        except JobError as error:
            return about | {"state": "failed", "exit_code": error.code, "last_lines": list(error.lines)}


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when any of it failed."""
    options = parse(words)
    if options.list:
        print("\n".join(f"{v.name:<22}{v.meaning}" for v in VARIANTS))
        return 0
    if options.against:
        return compare_commits(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trainer's process is ended too
    with work_folder(options.work) as work:
        try:
            bench = begin(options, work)
        except JobError as error:
            print("\n".join(error.lines), file=sys.stderr)
            return 1
        if options.losses:
            return compare_losses(bench, *options.variants)
        if options.extrapolate:
            return extrapolate(bench, options.variants)
        return compare_speed(bench, options.variants)


def compare_speed(bench: Bench, variants: Sequence[Variant]) -> int:
    """Every variant's speed and memory, a line as soon as it is known, a table at the end."""
    results = bench.ledger.results
    for variant in variants:
        results[variant.name] = bench.measure(variant)
        bench.ledger.write()
        say(variant.name, results[variant.name], result_line(variant.name, results[variant.name]))
    found = bench.facts["ceiling"]
    rate = f"{found['flops_per_s'] / 1e12:,.1f} TFLOP/s in {found['dtype']}"
    print(f"\n{bench.ledger.table()}\n\n{bench.ledger.machine['name']}, ceiling {rate}; written: {bench.ledger.path}")
    return int(any(results[variant.name]["state"] == "failed" for variant in variants))


def extrapolate(bench: Bench, variants: Sequence[Variant]) -> int:
    """Minutes of the tutorial's whole job, with its evaluations and checkpoints, beside what the plan foresaw."""
    for variant in variants:
        result = bench.ledger.extrapolations[variant.name] = bench.measure(variant)
        bench.ledger.write()
        if result["state"] != "measured":
            line = result_line(variant.name, result)
        else:
            foreseen = result["foreseen"]["seconds"]
            line = (
                f"RESULT {variant.name}: {result['steps_of_the_job']} steps in {result['whole_s'] / 60:.2f} min, "
                f"of which {result['begin_s']:.0f} s before the first; "
                f"the plan said {foreseen['foreseen'] / 60:.2f} min ({foreseen['error']:+.0%}); "
                f"an evaluation {result['seconds_per_evaluation'] or nan:.2f} s, "  # nan: none among the measured steps
                f"a checkpoint {result['seconds_per_checkpoint']:.2f} s"
            )
        say(variant.name, result, line)
    return int(any(bench.ledger.extrapolations[v.name]["state"] == "failed" for v in variants))


def compare_losses(bench: Bench, one: Variant, other: Variant) -> int:
    """How far apart two variants' loss curves are, on rows with something to learn."""
    found = [bench.measure(variant) for variant in (one, other)]
    name = f"{one.name} and {other.name}"
    pair = bench.ledger.losses[name] = {"of": found}
    if failed := [result for result in found if result["state"] != "measured"]:
        say(name, failed[0], result_line(name, failed[0]))
    else:
        curves = [result["losses"] for result in found]
        apart = pair["largest_relative_difference"] = curves_apart(*curves)
        print(
            f"RESULT losses of {name}: apart by {apart['raw']:.3%} at most, {apart['smoothed']:.3%} as means of "
            f"{apart['window']} steps; {curves[0][0]:.3f} to {curves[0][-1]:.3f} and {curves[1][-1]:.3f}"
        )
    bench.ledger.write()
    return int(bool(failed))


def compare_commits(options: argparse.Namespace) -> int:
    """One variant trained by this tree and by another commit's, each through the benchmark of its own commit."""
    (variant,) = options.variants
    root = BENCH.parent
    runs: dict[str, list[dict[str, Any]]] = {"mine": [], "theirs": []}
    with tree_of(options.against, root) as other, work_folder(options.work) as work:
        work.mkdir(parents=True, exist_ok=True)
        trees = {"mine": root, "theirs": other}
        for number in range(options.pairs):
            for side in list(trees) if number % 2 == 0 else reversed(list(trees)):
                runs[side].append(run_tree(trees[side], work, variant.name, options))
            seconds = {side: of[-1]["median_seconds_per_step"] for side, of in runs.items()}
            print(f"pair {number + 1}: {seconds['mine']:.4f} and {seconds['theirs']:.4f} s a step", file=sys.stderr)
    found = {figure: ratio(*([of[figure] for of in runs[side]] for side in ("mine", "theirs"))) for figure in COMPARED}
    for figure, of in found.items():
        print(line(f"{variant.name}, {figure}", options.against, of, options.pairs), flush=True)
    on = runs["mine"][0]["machine"]
    about = {"date": now(), "commit": commit(), "machine": on, "shape": options.shape, "steps": options.steps}
    kept = {side: [{figure: run[figure] for figure in COMPARED} for run in of] for side, of in runs.items()}
    path = options.out or BENCH / f"train-against-{on['slug']}.json"
    write_json(path, about | {"revision": options.against, "variant": variant.name, "ratios": found, "runs": kept})
    return 0


def run_tree(tree: Path, work: Path, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one variant, measured by the benchmark that stands in `tree`."""
    out = work / "against.json"
    command = [sys.executable, str(tree / "bench" / "train.py"), "--shape", options.shape, "--only", variant]
    for word in ("steps", "warm", "layers"):
        if (value := getattr(options, word)) is not None:
            command += [f"--{word}", str(value)]
    env = os.environ | {"PYTHONPATH": str(tree / "src")}
    done = subprocess.run([*command, "--work", str(work), "--out", str(out)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the benchmark in {tree} failed:\n{done.stdout}{done.stderr}")
    found = json.loads(out.read_text())
    return {**found["results"][variant], "machine": found["machine"]}


def begin(options: argparse.Namespace, work: Path) -> Bench:
    """Make the base, measure the machine's ceiling, open the results file."""
    steps, warm = STEPS[options.task]
    whole = int(PRESETS[options.shape].config["num_hidden_layers"])
    usual = min(whole, LOSSES_LAYERS) if options.losses else whole
    workload = Workload(
        shape=options.shape,
        layers=options.layers or usual,
        steps=options.steps or steps,
        warm=options.warm or warm,
        loss_on=options.loss_on,
        patterned=bool(options.losses),
    )
    facts = run(Job(job_folder(work, "prepare"), "prepare", workload, work))
    path = options.out or BENCH / f"train-{facts['machine']['slug']}.json"
    try:
        ledger = Ledger.open(path, facts["machine"], options.merge)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return Bench(work, options.task, workload, facts, ledger)


def run(job: Job) -> dict[str, Any]:
    """The job's result, from a process of its own; its folder stays only when it failed.

    Raises:
        JobError: the process ended without one.
    """
    job.write()
    print(f"{job.folder.name} ...", file=sys.stderr, flush=True)
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = os.pathsep.join([str(BENCH), *(str(Path(path).resolve()) for path in given)])
    log = job.folder / "log.txt"
    with log.open("w") as output:
        # In the job's folder, since Unsloth leaves compiled code in whichever folder it is started.
        done = subprocess.run(
            [sys.executable, "-m", "trainers", str(job.folder)],
            cwd=job.folder,
            env=os.environ | {"PYTHONPATH": paths},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if done.returncode or not job.result.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise JobError(done.returncode, lines[-LAST_LINES:])
    result: dict[str, Any] = json.loads(job.result.read_text())
    shutil.rmtree(job.folder)
    return result


def say(name: str, result: dict[str, Any], line: str) -> None:
    """The result's line; where it failed, what its process said last."""
    if result["state"] == "failed":
        print("\n".join(f"  {name} | {text}" for text in result["last_lines"][-SHOWN_LINES:]), file=sys.stderr)
    print(line, flush=True)


def job_folder(work: Path, name: str) -> Path:
    """A fresh folder."""
    work.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=re.sub(r"[^\w.-]+", "_", name) + "-", dir=work))


def commit() -> str | None:
    """The commit that is measured; None outside a clone."""
    with contextlib.suppress(OSError):
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=BENCH, capture_output=True, text=True
        )
        return found.stdout.strip() or None
    return None


@contextlib.contextmanager
def work_folder(asked: Path | None) -> Iterator[Path]:
    """The folder asked for, which stays; or one that goes."""
    if asked:
        yield asked.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="puna-bench-") as folder:
            yield Path(folder)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `variants` and `task` worked out."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="show the variants")
    add("--only", nargs="+", default=[], metavar="NAME", help="these variants; NAME+section.key=value changes a recipe")
    add("--steps", type=int, help="measured steps")
    add("--warm", type=int, help="steps before them")
    add("--shape", choices=sorted(PRESETS), default="llama3-8b", help="tiny: a dry run on the CPU")
    add("--layers", type=int, help="fewer layers than the shape has")
    add("--loss-on", choices=("all", "assistant"), default="all", help="which tokens are learnt")
    add("--work", type=Path, metavar="DIR", help="keep the 16 GB base here for the next call")
    add("--out", type=Path, metavar="FILE", help="bench/train-<gpu>.json when left out")
    add("--merge", action="store_true", help="add to the results file instead of beginning it anew")
    add("--extrapolate", action="store_true", help="minutes of the tutorial's whole job, from 60 of its steps")
    add("--losses", nargs=2, metavar="NAME", help="how far apart two variants' loss curves are")
    add_options(parser)
    options = parser.parse_args(words)
    check_options(parser, options)
    if options.against and len(options.only) != 1:
        parser.error("--against compares one variant: name it with --only")
    options.task = "losses" if options.losses else "extrapolate" if options.extrapolate else "speed"
    names = options.losses or options.only or (["puna-dropout-0.05"] if options.extrapolate else [])
    try:
        options.variants = [v for name in options.losses for v in pick([name])] if options.losses else pick(names)
    except ValueError as error:
        parser.error(str(error))
    if options.task != "speed" and any(v.trainer != "puna" for v in options.variants):
        parser.error(f"--{options.task} is for Puna's variants")
    if options.losses and len(options.variants) != 2:
        parser.error("--losses takes two names, each of one variant")
    for name in ("steps", "warm", "layers"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())

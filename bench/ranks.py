"""The benchmark of several GPUs: one run on one process and on N: how much faster, and how far losses lie apart."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.job import Job
from trainers.ledger import now
from trainers.variants import pick
from trainers.whole_run import curves_apart
from trainers.workload import PRESETS, Workload, make_base

import train as bench

BENCH = Path(__file__).resolve().parent
LOGGED = {
    "learning_rate": 2e-4,
    "warmup_steps": 5,
    "logging_steps": 1,
    "eval_steps": 1_000_000,
    "save_steps": 1_000_000,
}
"""The rate of the training benchmark's comparison of losses, every step's figures, and nothing else in between."""


def main(words: Sequence[str] | None = None) -> int:
    """Run on one process, then on `--ranks` of them, and write both beside each other."""
    options = parse(words)
    if options.rank_of:
        rank(Path(options.rank_of))
        return 0
    with bench.work_folder(options.work) as work:
        layers = options.layers or int(PRESETS[options.shape].config["num_hidden_layers"])
        workload = Workload(options.shape, layers, options.steps, options.warm, patterned=True)
        machine = about(work, workload)
        base_dir = make_base(work, workload, "cuda" if machine["gpus"] else "cpu")
        results = {str(world): measure(work, workload, base_dir, world) for world in (1, options.ranks)}
    one, many = (results[str(world)] for world in (1, options.ranks))
    apart = curves_apart(one["losses"], many["losses"])
    found = {
        "benchmark": "ranks", "machine": machine, "written": now(), "commit": bench.commit(),
        "settings": workload.as_dict(), "results": results, "losses_apart": apart,
        "speedup": many["tokens_per_s"] / one["tokens_per_s"],
    }  # fmt: skip
    out = options.out or BENCH / f"ranks-{machine['slug']}-x{options.ranks}.json"
    out.write_text(json.dumps(found, indent=2) + "\n")
    for world, result in results.items():
        print(f"RESULT {world} process(es): {result['tokens_per_s']:,.0f} tok/s, {result['gib']:.1f} GiB on the first")
    curve = f"losses {one['losses'][0]:.3f} to {one['losses'][-1]:.3f}"
    far = f"{apart['raw']:.3%} at most, {apart['smoothed']:.3%} as means of {apart['window']} steps"
    print(f"RESULT {options.ranks} to 1: {found['speedup']:.2f} x; {curve}, apart by {far}; {out}")
    return 0


def about(work: Path, workload: Workload) -> dict[str, Any]:
    """The machine, as the training benchmark names it, and how many GPUs it has."""
    import torch

    facts = bench.run(Job(bench.job_folder(work, "prepare"), "prepare", workload, work))
    return facts["machine"] | {"gpus": torch.cuda.device_count()}


def measure(work: Path, workload: Workload, base_dir: Path, world: int) -> dict[str, Any]:
    """One run by `world` processes under torchrun.

    Raises:
        SystemExit: it failed; its output was shown.
    """
    from trainers import with_puna

    from puna.train.reporting.record import Run

    (variant,) = pick(["puna-dropout-0"])
    job = Job(bench.job_folder(work, f"ranks-{world}"), "losses", workload, work, base_dir, variant)
    recipe = with_puna.make_recipe(job, LOGGED | {"max_steps": workload.all_steps})
    dataset = with_puna.write_dataset(job, with_puna.in_order_of_use(workload.rows(), recipe), [])
    (job.folder / "dataset.txt").write_text(str(dataset.path))
    job.write()
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run([*started, str(BENCH / "ranks.py"), "--rank-of", str(job.folder)], stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"the run on {world} process(es) failed with {done.returncode}: its output is above")
    lines = [line for line in Run(job.folder / "run").metrics() if "tokens_per_s" in line]
    measured = [line["tokens_per_s"] for line in lines if line["step"] > workload.warm]
    return {
        "losses": [line["loss"] for line in lines],
        "tokens_per_s": len(measured) / sum(1 / speed for speed in measured),
        "gib": max(line["memory_bytes"] for line in lines) / 2**30,
        "plan": Run(job.folder / "run").plan,
    }


def rank(folder: Path) -> None:
    """What each process does: the run that the folder says."""
    from trainers import with_puna

    from puna.artifacts import Dataset
    from puna.train.run import train

    job = Job.read(folder)
    assert job.base_dir is not None
    recipe = with_puna.make_recipe(job, LOGGED | {"max_steps": job.workload.all_steps})
    dataset = Dataset.open(Path((folder / "dataset.txt").read_text()))
    train(recipe, job.base_dir, dataset, folder / "run", with_puna.Watcher())


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ranks", type=int, default=2, help="processes of the second run, a GPU each where there are any")
    add("--steps", type=int, default=30, help="measured steps")
    add("--warm", type=int, default=5, help="steps before them")
    add("--shape", choices=sorted(PRESETS), default="llama3-8b", help="tiny: a dry run on the CPU")
    add("--layers", type=int, help="fewer layers than the shape has")
    add("--work", type=Path, metavar="DIR", help="keep the 16 GB base here for the next call")
    add("--out", type=Path, metavar="FILE", help="bench/ranks-<gpu>-x<ranks>.json when left out")
    add("--rank-of", help=argparse.SUPPRESS)
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())

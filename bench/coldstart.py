"""The cold-start benchmark: an HTTP request to an endpoint that is scaled to zero, with and without a zygote."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from pairs import add_options, check_options, line, ratio, tree_of
from servers.contenders import Puna, puna

from puna.artifacts import write_json
from serve import BENCH, commit, machine

WAIT_S = 120.0
IDLE_S = 0.3
"""`scale_down_delay_s`: an endpoint is at zero so soon after its last reply."""
SETTLE_S = 1.0
"""After that: what the last replica's end costs must not count for the next one's start."""
TIERS = ("cold", "warm")
SCHEMA = 'INPUT_SCHEMA = {"text": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
# The app times its own imports and `initialize`: what is over that is Puna's.
APP = """
import time
begun = time.monotonic()
{imports}
imported = time.monotonic()

class InferlessPythonModel:
    def initialize(self):
        begun_here = time.monotonic()
        {initialize}
        self.own_s = imported - begun + time.monotonic() - begun_here
    def infer(self, inputs):
        return {{"own_s": self.own_s}}
"""
APPS = {
    "noop": APP.format(imports="", initialize="pass"),
    "torch": APP.format(imports="import torch", initialize="torch.ones(8) @ torch.ones(8)"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Measure every app in every tier, several times in turn, and write medians and all figures."""
    options = parse(words)
    result: dict[str, Any] = {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "rounds": options.rounds,
    }
    if options.against:
        result["against"] = compare(options.against, options.only, options.pairs)
    else:
        with puna() as running, tempfile.TemporaryDirectory() as folder:
            result["apps"] = {name: measure(running, Path(folder), name, options.rounds) for name in options.only}
    kind = "coldstart-against" if options.against else "coldstart"
    path = options.out or BENCH / f"{kind}-{result['machine']['slug']}.json"
    write_json(path, result)
    print(f"{result['machine']['name']}; load average before {result['machine']['load']}; written: {path}")
    return 0


def measure(running: Puna, folder: Path, name: str, rounds: int) -> dict[str, Any]:
    """One app: deployed, then started from zero `rounds` times in each tier."""
    deploy(running, folder / name, name)
    found: dict[str, Any] = {}
    for tier in TIERS:
        running.client.patch(name, zygote=tier == "warm")
        runs = []
        for _ in range(rounds):
            until_zero(running, name, tier)
            time.sleep(SETTLE_S)
            runs.append(start(running, name))
        if tier == "warm":
            found["zygote_bytes"] = running.client.endpoint(name)["warm"]["memory_bytes"]
        found[tier] = {
            **{key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]},
            "runs": runs,
        }
        print(
            f"RESULT {name} {tier}: reply after {found[tier]['total_s']:.3f} s, "
            f"{found[tier]['over_s']:.3f} s over the app's own {found[tier]['own_s']:.3f} s (medians of {rounds})",
            flush=True,
        )
    return found


def compare(revision: str, names: Sequence[str], pairs: int) -> dict[str, Any]:
    """Starts from zero in this tree and in another commit's, in turn: the ratio of the seconds to the reply."""
    found: dict[str, Any] = {"revision": revision, "apps": {}}
    with (
        tree_of(revision, BENCH.parent) as other,
        puna(source=BENCH.parent / "src") as mine,
        puna(source=other / "src") as theirs,
        tempfile.TemporaryDirectory() as folder,
    ):
        sides = {"mine": mine, "theirs": theirs}
        for name in names:
            for side, running in sides.items():
                (Path(folder) / side).mkdir(exist_ok=True)
                deploy(running, Path(folder) / side / name, name)
            found["apps"][name] = {tier: in_pairs(sides, name, tier, pairs) for tier in TIERS}
            for tier, of in found["apps"][name].items():
                print(line(f"{name} {tier}, seconds to the reply", revision, of["ratio"], pairs), flush=True)
    return found


def in_pairs(sides: Mapping[str, Puna], name: str, tier: str, pairs: int) -> dict[str, Any]:
    """One app in one tier, started in turn by both, each first every other time."""
    runs: dict[str, list[float]] = {side: [] for side in sides}
    for running in sides.values():
        running.client.patch(name, zygote=tier == "warm")
    for number in range(pairs):
        for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
            for running in sides.values():  # the one that is not measured sleeps as well
                until_zero(running, name, tier)
            time.sleep(SETTLE_S)
            runs[side].append(start(sides[side], name)["total_s"])
    return {"ratio": ratio(runs["mine"], runs["theirs"]), "total_s": runs}


def deploy(running: Puna, folder: Path, name: str) -> None:
    """The app, with this environment's packages to import from; it scales to zero at once."""
    folder.mkdir()
    (folder / "app.py").write_text(APPS[name])
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    settings: dict[str, Any] = {"gpu_type": "cpu", "scale_down_delay_s": IDLE_S, "min_replica": 0}
    if name != "noop":
        settings["env"] = {"PYTHONPATH": next(path for path in sys.path if path.endswith("site-packages"))}
    deployed = running.client.deploy(folder, name, settings=settings)
    running.client.wait_for_build(deployed["build_id"], WAIT_S)
    running.client.wait_for_endpoint(name, deployed["revision"], WAIT_S)


def at_zero(running: Puna, name: str, tier: str) -> bool:
    """No replica is left, and the zygote is there or not, as the tier has it."""
    endpoint = running.client.endpoint(name)
    warm = endpoint["warm"] or {"state": "off"}
    if warm["state"] == "refused":
        raise RuntimeError(f"the zygote of {name} refuses: {warm['reason']}")
    return not endpoint["replicas"] and warm["state"] == ("ready" if tier == "warm" else "off")


def start(running: Puna, name: str) -> dict[str, float]:
    """One request; seconds to its reply, those that the app took for itself, and the rest."""
    url = running.target.url.replace("/noop/", f"/{name}/")
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
    headers = {"authorization": f"Bearer {running.target.key}"}
    begun = time.perf_counter()
    # Certificates, which nobody shows here, would take 50 ms to read.
    reply = httpx.post(url, json=body, headers=headers, timeout=WAIT_S, verify=False)
    total_s = time.perf_counter() - begun
    reply.raise_for_status()
    own_s = float(reply.json()["outputs"][0]["data"][0])
    return {"total_s": total_s, "own_s": own_s, "over_s": total_s - own_s}


def until_zero(running: Puna, name: str, tier: str) -> None:
    """Wait until the endpoint is at zero, in that tier."""
    deadline = time.monotonic() + WAIT_S
    while not at_zero(running, name, tier):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} is not at zero and {tier} within {WAIT_S:g} s")
        time.sleep(0.1)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    has_torch = importlib.util.find_spec("torch") is not None
    names = [name for name in APPS if name != "torch" or has_torch]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(APPS), default=names, help="these apps")
    parser.add_argument("--rounds", type=int, default=10, help="starts from zero of each app in each tier")
    parser.add_argument("--out", type=Path, metavar="FILE", help="bench/coldstart-<machine>.json when left out")
    add_options(parser)
    options = parser.parse_args(words)
    check_options(parser, options)
    return options


if __name__ == "__main__":
    sys.exit(main())

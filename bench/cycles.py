"""The long-life benchmark: endpoints woken and scaled to zero, deployed and deleted, and what is left of it all."""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from servers.census import LASTING, Census
from servers.contenders import ENDPOINT, Puna, puna

from puna.artifacts import write_json
from puna.control.builds.cleanup import LOOK_S as SWEEP_S
from puna.errors import BuildError
from serve import BENCH, commit, machine

WAIT_S = 120.0
LOOK_S = 0.1
WARM_UP = 0.1
"""Of all operations: allocators fill their pools, and what is kept of the past reaches its bounds."""
GROWTH = 0.05
"""Memory may be so much more at the end than after the warm-up."""
LATE = 0.01
"""And a gateway's that is, so much more than after two thirds."""
POOLED = 16
"""Descriptors that come and go: connections to the database, and of callers."""
KEPT = 30
"""Counts that are written down; the verdict is made from all."""
FAILS_EVERY, DELETES_EVERY = 10, 8
"""Of the deploys: every so many-th has an app that fails; every so many-th makes an endpoint that is then deleted."""
NAMES = 4
"""Of the endpoints that come and go: a gateway keeps figures for each name it has ever had."""
SCHEMA = 'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
RUNTIME = "build:\n  python_packages: []\n"
APP = """
class InferlessPythonModel:
    def initialize(self):
        if {fails}:
            raise ValueError("this app is meant to fail")
    def infer(self, inputs):
        return {{"out": "{version}"}}
"""


class Life:
    """What happens to one `puna up`: threads that wake endpoints and one that deploys, side by side."""

    def __init__(self, running: Puna, folder: Path, options: argparse.Namespace) -> None:
        self.puna, self.folder, self.options = running, folder, options
        self.census = Census(running)
        self.samples: list[dict[str, Any]] = []
        self.cycles = self.deploys = self.failed_builds = self.deleted = 0
        self.troubles: list[str] = []
        self._due = options.every
        self._lock = threading.Lock()

    def run(self) -> None:
        """All cycles and all deploys, to their ends."""
        names = [f"sleeper-{number}" for number in range(self.options.endpoints)]
        for number, name in enumerate(names):
            self.deploy(name, "0", zygote=number % 2 == 0)
        self.deploy("changing", "0")
        jobs: list[Callable[[], None]] = [lambda name=name: self.wake_and_wait(name) for name in names]  # type: ignore[misc]
        threads = [threading.Thread(target=self._guarded, args=(job,)) for job in [*jobs, self.deploy_all]]
        self.sample()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A source that no sweep has found named stays for a day, as one that was uploaded and never deployed does.
        time.sleep(3 * SWEEP_S)
        for name in [*names, "changing"]:
            self.puna.client.delete(name)

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - the report has it, and the other threads end
            self.troubles.append(f"{type(error).__name__}: {error}")

    # ---- cycles ------------------------------------------------------------------------------------------------

    def wake_and_wait(self, name: str) -> None:
        """Cycles of one endpoint, until all endpoints together have had theirs."""
        while not self.troubles:
            with self._lock:
                if self.cycles >= self.options.cycles:
                    return
                self.cycles += 1
                is_due = self.done >= self._due
                self._due += self.options.every * is_due
            self.until(lambda: not self.puna.client.endpoint(name)["replicas"], f"{name} is at zero")
            self.call(name, "0")
            if is_due:
                self.sample()

    def call(self, name: str, expected: str) -> None:
        """One request, and the right answer."""
        url = self.puna.target.url.replace(f"/{ENDPOINT}/", f"/{name}/")
        body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
        headers = {"authorization": f"Bearer {self.puna.target.key}"}
        reply = httpx.post(url, json=body, headers=headers, timeout=WAIT_S, verify=False)
        if reply.status_code != 200 or reply.json()["outputs"][0]["data"] != [expected]:
            raise RuntimeError(f"{name} answered {reply.status_code}: {reply.text[:500]}")

    # ---- deploys -----------------------------------------------------------------------------------------------

    def deploy_all(self) -> None:
        """The deploys, spread over the cycles: a changed source each, at times a bad one or another endpoint."""
        share = self.options.cycles / max(self.options.deploys, 1)
        serves = "0"
        for number in range(1, self.options.deploys + 1):
            self.until(lambda n=number: self.cycles >= (n - 1) * share, "the cycles go on", within_s=3600)  # type: ignore[misc]
            if number % FAILS_EVERY == 0:
                self.fail(number)
                self.call("changing", serves)
            elif number % DELETES_EVERY == 0:
                name = f"passing-{self.deleted % NAMES}"
                self.deploy(name, str(number))
                self.call(name, str(number))
                self.puna.client.delete(name)
                self.deleted += 1
            else:
                serves = str(number)
                self.deploy("changing", serves)
                self.call("changing", serves)
            self.deploys += 1
            if self.troubles:
                return

    def deploy(self, name: str, version: str, *, fails: bool = False, zygote: bool = True) -> None:
        """A deploy, until it serves."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "app.py").write_text(APP.format(version=version, fails=fails))
        (folder / "input_schema.py").write_text(SCHEMA)
        (folder / "inferless-runtime-config.yaml").write_text(RUNTIME)
        settings = {"gpu_type": "cpu", "scale_down_delay_s": 0, "min_replica": 0, "zygote": zygote}
        client = self.puna.client
        deployed = client.deploy(folder, name, settings=settings)
        client.wait_for_build(deployed["build_id"], WAIT_S)
        client.wait_for_endpoint(name, deployed["revision"], WAIT_S)

    def fail(self, number: int) -> None:
        """A deploy whose build fails."""
        try:
            self.deploy("changing", str(number), fails=True)
        except BuildError:
            self.failed_builds += 1
            return
        raise RuntimeError("an app that fails was deployed")

    # ---- counts ------------------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """Operations begun."""
        return self.cycles + self.deploys

    def sample(self) -> None:
        """Count now."""
        self.samples.append(self.census.take(self.done))
        control = self.samples[-1]["lasting"].get("control", {})
        print(
            f"{self.cycles} cycles, {self.deploys} deploys: control plane {control.get('rss_kib', 0) / 1024:.1f} MiB, "
            f"{control.get('descriptors')} descriptors",
            file=sys.stderr,
            flush=True,
        )

    def until(self, condition: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
        """Wait for something."""
        deadline = time.monotonic() + within_s
        while not condition():
            if self.troubles or time.monotonic() > deadline:
                raise RuntimeError(f"not within {within_s:g} s: {what}")
            time.sleep(LOOK_S)


def main(words: Sequence[str] | None = None) -> int:
    """Live, count, and write down what grew; 1 when anything did, or failed."""
    options = parse(words)
    result: dict[str, Any] = {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }
    with puna() as running, tempfile.TemporaryDirectory() as folder:
        before = settled(running, 2)
        life, began = Life(running, Path(folder), options), time.monotonic()
        life.run()
        result["seconds"] = round(time.monotonic() - began, 1)
        result |= {n: getattr(life, n) for n in ("cycles", "deploys", "failed_builds", "deleted")}
        after = settled(running, options.quiet)
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(WAIT_S)
        time.sleep(1)
        orphans = sorted(running.processes())
    result |= {"before": before, "after": after, "orphans": orphans, "growth": growth(life.samples)}
    result["troubles"] = [*life.troubles, *verdict(result)]
    result["samples"] = life.samples[:: max(len(life.samples) // KEPT, 1)]
    path = options.out or BENCH / f"cycles-{result['machine']['slug']}.json"
    write_json(path, result)
    print("\n".join(report(result)))
    print(f"{result['machine']['name']}; load average before {result['machine']['load']}; written: {path}")
    return int(bool(result["troubles"]))


def settled(running: Puna, quiet_s: float) -> dict[str, Any]:
    """The count once nothing comes or goes any more: the same processes and folders for a while."""
    census, deadline, since = Census(running), time.monotonic() + WAIT_S, time.monotonic()
    found = census.take(0)
    while time.monotonic() - since < quiet_s and time.monotonic() < deadline:
        time.sleep(0.5)
        now = census.take(0)
        if any(now[key] != found[key] for key in ("processes", "sockets", "folders", "zombies")):
            since = time.monotonic()
        found = now
    return found


def growth(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each lasting process: the median after the warm-up and at the end, a tenth of all samples each."""
    width = max(len(samples) // 10, 3)
    start = max(int(len(samples) * WARM_UP), 1)
    found: dict[str, dict[str, Any]] = {}
    for role in LASTING:
        for key in ("rss_kib", "pss_kib", "descriptors", "threads"):
            values = [sample["lasting"][role][key] for sample in samples if role in sample["lasting"]]
            first, last = statistics.median(values[start : start + width]), statistics.median(values[-width:])
            third = statistics.median(values[len(values) * 2 // 3 :][:width])
            late = last / third - 1 if third else 0.0
            figures = {"first": first, "last": last, "most": max(values), "share": last / first - 1, "late": late}
            found.setdefault(role, {})[key] = figures
    return found


def verdict(result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = [f"orphan: {name}" for name in result["orphans"]]
    for role, figures in result["growth"].items():
        rss, open_ = figures["rss_kib"], figures["descriptors"]
        # What a gateway counts by endpoint, status and tier fills up for long; a leak would go on in the last third.
        if rss["share"] > GROWTH and (role != "gateway" or rss["late"] > LATE):
            found.append(f"{role} grew by {rss['share']:.1%}: {rss['first']:.0f} to {rss['last']:.0f} KiB")
        if open_["last"] > open_["first"] + POOLED:
            found.append(f"{role}: {open_['first']:.0f} descriptors after the warm-up, {open_['last']:.0f} at the end")
    before, after = result["before"], result["after"]
    for key in ("processes", "sockets", "zombies"):
        if after[key] != before[key]:
            found.append(f"{key}: {before[key]} before, {after[key]} after")
    for name, count in after["folders"].items():
        # Of an endpoint that came and went between two sweeps the source stays for a day.
        if count > before["folders"][name] + (result["deleted"] if name == "sources" else 0):
            found.append(f"{name}: {before['folders'][name]} folders before, {count} after all was deleted")
    return found


def report(result: dict[str, Any]) -> list[str]:
    """The lines that scripts look for."""
    lines = [
        f"RESULT {result['cycles']} cycles and {result['deploys']} deploys ({result['failed_builds']} failed on "
        f"purpose, {result['deleted']} endpoints deleted) in {result['seconds']:.0f} s"
    ]
    for role, figures in result["growth"].items():
        rss, count = figures["rss_kib"], {key: f"{figures[key]['last']:.0f}" for key in ("descriptors", "threads")}
        lines.append(
            f"RESULT {role}: {rss['first'] / 1024:.1f} to {rss['last'] / 1024:.1f} MiB ({rss['share']:+.1%}, since "
            f"two thirds {rss['late']:+.1%}), "
            f"{count['descriptors']} descriptors, {count['threads']} threads"
        )
    after = result["after"]
    lines.append(f"RESULT left: {after['folders']}, {after['logs']['files']} log files, {after['sockets']} sockets")
    lines.append(f"RESULT rows: { {name: count for name, count in after['rows'].items() if count} }")
    return [*lines, *(f"TROUBLE {trouble}" for trouble in result["troubles"])]


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000, help="times that an endpoint is woken and scaled to zero")
    parser.add_argument("--deploys", type=int, default=200, help="deploys beside them, each of a changed source")
    parser.add_argument("--endpoints", type=int, default=4, help="endpoints that are woken in parallel")
    parser.add_argument("--every", type=int, default=10, help="operations between two counts")
    quiet = "seconds without a change after which all has ended, and what is no longer kept has been dropped"
    parser.add_argument("--quiet", type=float, default=15.0, help=quiet)
    parser.add_argument("--out", type=Path, metavar="FILE", help="bench/cycles-<machine>.json when left out")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())

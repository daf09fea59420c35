"""The serving benchmark: Puna's gateway and worker, and its peers, with one no-op handler and one load generator."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pairs import add_options, check_options
from servers import against
from servers.contenders import PEERS, peer, puna
from servers.load import bare_worker, need_wrk, wrk
from servers.soak import soak

from puna.artifacts import write_json

BENCH = Path(__file__).resolve().parent
WARM_S = 1.0
PUNA = "puna"
SETTINGS = ("rounds", "seconds", "connections", "gateways", "soak", "against", "pairs")
HEAD = ("server", "req/s at 64", "p50 ms", "p99 ms", "p50 ms at 1", "to Puna")


def main(words: Sequence[str] | None = None) -> int:
    """Measure everybody in turn, several rounds; 1 when any of them failed."""
    options = parse(words)
    need_wrk()
    result: dict[str, Any] = {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "versions": versions(),
    }
    kind = "serve-against" if options.against else "serve"
    path = options.out or BENCH / f"{kind}-{result['machine']['slug']}.json"
    if options.against:
        load = (options.connections, options.seconds)
        found = against.compare(options.against, BENCH.parent, options.pairs, load, options.gateways)
        result["against"] = found
        print("\n".join(against.lines(found, options.connections)))
    elif options.soak:
        result["soak"] = long_run(options)
    else:
        result["servers"] = compare(options)
        print("\n" + table(result["servers"]))
    write_json(path, result)
    print(f"\n{result['machine']['name']}; load average before {result['machine']['load']}; written: {path}")
    return int(any(found["state"] == "failed" for found in result.get("servers", {}).values()))


def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every server once a round, so that a machine that slows down slows all of them; then medians and ratios."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    failed: dict[str, str] = {}
    for number in range(options.rounds):
        for name in options.only:
            if name in failed:
                continue
            try:
                runs[name].append(measure(name, options))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed[name] = str(error)
                print(f"  {name} | {error}", file=sys.stderr)
                continue
            print(f"round {number + 1}: {name} {short(runs[name][-1])}", file=sys.stderr, flush=True)
    servers: dict[str, dict[str, Any]] = {}
    for name, found in runs.items():
        if name in failed:
            servers[name] = {"state": "failed", "error": failed[name][-2000:], "runs": found}
        else:
            servers[name] = {"state": "measured", **medians(found), "runs": found}
    own = servers.get(PUNA, {})
    for name, server in servers.items():
        if own.get("state") == server["state"] == "measured":
            server["puna_times_faster"] = ratio(runs[PUNA], runs[name])
        print(line(name, server), flush=True)
    return servers


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One server, started for it: one connection, then many."""
    if name != PUNA:
        with peer(PEERS[name], options.environments) as target:
            wrk(target, options.connections, WARM_S)
            return {
                "one": wrk(target, 1, options.seconds),
                "many": wrk(target, options.connections, options.seconds),
            }
    with puna(options.gateways) as running:
        wrk(running.target, options.connections, WARM_S)
        # The bare worker between two looks at the same through the gateway: both saw the same machine.
        halves = [wrk(running.target, 1, options.seconds / 2)]
        bare = bare_worker(running.worker_socket(), options.seconds / 2)
        halves.append(wrk(running.target, 1, options.seconds / 2))
        one = halves[0] | {"p50_ms": statistics.mean(half["p50_ms"] for half in halves)}
        many = wrk(running.target, options.connections, options.seconds)
        return {"one": one, "bare": bare, "added_p50_ms": one["p50_ms"] - bare["p50_ms"], "many": many}


def long_run(options: argparse.Namespace) -> dict[str, Any]:
    """Puna alone for many minutes; what grew."""
    with puna(options.gateways) as running:
        found = soak(running, options.soak, options.connections)
    for name, process in found["processes"].items():
        print(
            f"RESULT memory of {name}: {process['mib_at_first']:.1f} to {process['mib_at_last']:.1f} MiB, "
            f"at most {process['mib_at_most']:.1f}; {process['kib_per_minute']:+.1f} KiB a minute, "
            f"in the last third {process['kib_per_minute_last_third']:+.1f}"
        )
    print(
        f"RESULT soak: {found['requests']:,} requests in {options.soak:g} min, {found['requests_per_s']:,.0f} a second"
    )
    return found


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The middle of all rounds, figure by figure."""
    figures = {
        "requests_per_s": [run["many"]["requests_per_s"] for run in runs],
        "p50_ms": [run["many"]["p50_ms"] for run in runs],
        "p99_ms": [run["many"]["p99_ms"] for run in runs],
        "one_p50_ms": [run["one"]["p50_ms"] for run in runs],
        "added_p50_ms": [run["added_p50_ms"] for run in runs if "added_p50_ms" in run],
        "bare_p50_ms": [run["bare"]["p50_ms"] for run in runs if "bare" in run],
    }
    return {name: statistics.median(values) for name, values in figures.items() if values}


def ratio(own: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> float:
    """Puna's requests/s over the other's, the median of the rounds' ratios."""
    pairs = zip(own, other, strict=True)
    return statistics.median(a["many"]["requests_per_s"] / b["many"]["requests_per_s"] for a, b in pairs)


def short(run: dict[str, Any]) -> str:
    """One round in a few words."""
    many = run["many"]
    said = f"{many['requests_per_s']:,.0f} req/s, p50 {many['p50_ms']:.1f}, p99 {many['p99_ms']:.1f} ms"
    return f"{said}; one connection {run['one']['p50_ms']:.3f} ms"


def line(name: str, server: dict[str, Any]) -> str:
    """The line that scripts look for."""
    if server["state"] == "failed":
        return f"RESULT {name}: failed: {server['error'].splitlines()[0]}"
    said = f"RESULT {name}: {server['requests_per_s']:,.0f} req/s, p50 {server['p50_ms']:.2f} ms, "
    said += f"p99 {server['p99_ms']:.2f} ms; one connection p50 {server['one_p50_ms']:.3f} ms"
    if "added_p50_ms" in server:
        bare = f"the bare worker's {server['bare_p50_ms']:.3f} ms"
        return said + f", of which the gateway added {server['added_p50_ms']:.3f} ms to {bare}"
    return said + (f"; Puna {server['puna_times_faster']:.1f} times" if "puna_times_faster" in server else "")


def table(servers: dict[str, dict[str, Any]]) -> str:
    """The medians, in columns."""
    rows = [HEAD]
    for name, server in servers.items():
        if server["state"] == "failed":
            rows.append((name, "failed", "", "", "", ""))
            continue
        figures = [f"{server['requests_per_s']:,.0f}", *(f"{server[key]:.2f}" for key in ("p50_ms", "p99_ms"))]
        times = server.get("puna_times_faster")
        rows.append((name, *figures, f"{server['one_p50_ms']:.3f}", f"1/{times:.1f}" if times else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def machine() -> dict[str, Any]:
    """What it was measured on."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    name = model[1].strip() if model else platform.machine()
    cores = len(os.sched_getaffinity(0))
    slug = re.sub(r"[^a-z0-9]+", "-", f"{cores}-cores {name}".lower()).strip("-")
    load = [round(value, 2) for value in os.getloadavg()]
    return {"name": f"{cores} cores of {name}", "slug": slug, "kernel": platform.release(), "load": load}


def versions() -> dict[str, str]:
    """Of everything on the path, and of the peers."""
    own = ("puna", "uvicorn", "httptools", "uvloop", "orjson")
    found = {name: importlib.metadata.version(name) for name in own}
    found["python"] = platform.python_version()
    for kind in PEERS.values():
        name, _, version = kind.packages[0].partition("==")
        found[name] = version
    return found


def commit() -> str | None:
    """The commit that is measured; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, cwd=BENCH, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puna-bench"
    names = [PUNA, *PEERS]
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=names, default=names, help="these servers")
    add("--rounds", type=int, default=3, help="how often each is started and measured, in turn")
    add("--seconds", type=float, default=8.0, help="of load in each measurement")
    add("--connections", type=int, default=64)
    add("--gateways", type=int, default=1, help="gateway processes of Puna")
    add("--soak", type=float, default=0.0, metavar="MINUTES", help="Puna alone for so long, and what grows")
    add_options(parser)
    add("--environments", type=Path, default=cache, metavar="DIR", help=f"the peers' environments; {cache}")
    add("--out", type=Path, metavar="FILE", help="bench/serve-<machine>.json when left out")
    options = parser.parse_args(words)
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds are 1 at least")
    check_options(parser, options)
    return options


if __name__ == "__main__":
    sys.exit(main())

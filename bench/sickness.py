"""Each process of a `puna up` made sick in each way under eight callers, several times: how soon it was well again."""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from puna.artifacts import write_json
from serve import BENCH, commit, machine

sys.path.append(str(BENCH.parent / "tests"))

ROLES = ("worker", "gateway", "control")


def main() -> None:
    """Write bench/sickness-<machine>.json."""
    from stories.sickness import INFERENCE_TIME_S, KINDS, WITHIN_S, Recovery, sicken, standing

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="how often each")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found: list[Recovery] = []
    with tempfile.TemporaryDirectory(prefix="puna-") as root, standing(Path(root)) as up:
        for role in ROLES:
            for kind in KINDS:
                mine = [sicken(up, role, kind) for _ in range(options.times)]
                found += mine
                took = [one.recovered_s for one in mine]
                lost, broken = sum(len(one.failed) for one in mine), sum(one.broken for one in mine)
                print(
                    f"{role:8} {kind:20} {statistics.median(took):5.1f} s, {max(took):5.1f} s at most of "
                    f"{WITHIN_S[role]:g} s; {lost} replies lost, {broken} connections broken",
                    flush=True,
                )
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = [{**dataclasses.asdict(one), "failed": len(one.failed)} for one in found]
    told = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "machine": machine()}
    told |= {"inference_time_s": INFERENCE_TIME_S, "callers": 8, "load_1min": load, "within_s": WITHIN_S}
    out = options.out or BENCH / f"sickness-{machine()['slug']}.json"
    write_json(out, {**told, "recoveries": rows})
    worst = {role: max(one.recovered_s for one in found if one.role == role) for role in ROLES}
    print(f"RESULT {worst} s at most, {sum(len(one.failed) for one in found)} replies lost of {len(rows)} sicknesses")
    sys.exit(any(worst[role] > WITHIN_S[role] for role in ROLES))


if __name__ == "__main__":
    main()

"""Print the share of each package's statements that ran, and fail where the whole is below pyproject's bound."""

from __future__ import annotations

import collections
import json
import sys
import tempfile
from pathlib import Path

import coverage

ROOT = Path(__file__).parent.parent
PUNA = ROOT / "src" / "puna"
WORST = 10


def main(parts: list[str]) -> int:
    """Print the table of `.coverage`; `parts` are what was run of the tests, none for all."""
    measured = coverage.Coverage()
    measured.load()
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        measured.json_report(outfile=file.name)
        files = json.load(file)["files"]
    packages: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    shares = []
    for name, found in files.items():
        path = Path(name).resolve().relative_to(PUNA)
        ran, all_of_it = found["summary"]["covered_lines"], found["summary"]["num_statements"]
        for package in (path.parts[0] + "/" if len(path.parts) > 1 else "(modules)", "all"):
            packages[package][0] += ran
            packages[package][1] += all_of_it
        shares.append((ran / all_of_it if all_of_it else 1.0, path.as_posix(), all_of_it - ran))
    print(f"{'package':<16}{'statements':>12}{'missed':>9}{'ran':>9}")
    for package, (ran, all_of_it) in sorted(packages.items(), key=lambda item: item[0] == "all"):
        print(f"{package:<16}{all_of_it:>12}{all_of_it - ran:>9}{ran / max(all_of_it, 1):>9.1%}")
    print("least: " + ", ".join(f"{path} {share:.0%} ({missed})" for share, path, missed in sorted(shares)[:WORST]))
    bound, share = float(measured.get_option("report:fail_under")), 100 * packages["all"][0] / packages["all"][1]
    part = f" by {' '.join(parts)} alone" if parts else ""
    print(f"coverage: {share:.1f} % of src/puna{part}; the bound is {bound:.0f} % for the whole")
    return 0 if parts or share >= bound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

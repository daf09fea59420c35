"""Measure the process that runs this: `make coverage` lets each process of .venv do so, whatever its environment."""

import os
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[1]

# Apps and builds get clean environments: what coverage reads there is set here, for this moment only.
given = {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": str(ROOT / ".coverage")}
before = {name: os.environ.get(name) for name in given}
os.environ.update(given)
try:
    coverage.process_startup()
finally:
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value

"""What differs between the packages of two environments, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.cli import output


def show(changes: Mapping[str, Any] | None, before: str, after: str) -> None:
    """Added, removed and changed, under the two headings; None: one of the environments is not there."""
    if changes is None:
        output.line("their packages are not compared: one of the two environments is not there")
        return
    rows = [(p["name"], "", p["version"]) for p in changes["added"]]
    rows += [(p["name"], p["version"], "") for p in changes["removed"]]
    rows += [(p["name"], p["before"], p["after"]) for p in changes["changed"]]
    output.table(("package", before, after), sorted(rows), empty="the packages are the same")

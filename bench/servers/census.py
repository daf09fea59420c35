"""What a `puna up` holds at one moment: memory, descriptors, processes, sockets, files and rows."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.home import Home
from servers.contenders import Puna

FOLDERS = ("environments", "bundles", "sources", "caches", "workspaces")
LASTING = ("up", "control", "gateway")
"""Processes that are there from the first moment to the last; all others come and go with replicas."""


@dataclass
class Census:
    """Counts again and again."""

    puna: Puna

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def take(self, done: int) -> dict[str, Any]:
        """One count, after so many operations."""
        processes = self.puna.processes()
        roles: dict[str, int] = {}
        lasting: dict[str, Any] = {}
        for name, pid in processes.items():
            role = name.partition(" ")[0]
            roles[role] = roles.get(role, 0) + 1
            if role in LASTING:
                with contextlib.suppress(OSError):  # it ended in between
                    lasting[role] = process(pid)
        return {
            "done": done,
            "at_s": round(time.monotonic() - self._began, 1),
            "lasting": lasting,
            "processes": roles,
            "zombies": sum(_is_zombie(pid) for pid in processes.values()),
            "sockets": len(list(self.puna.home.sockets.iterdir())),
            "folders": {name: len(_visible(self.puna.home.root / name)) for name in FOLDERS},
            "logs": {"files": len(_files(self.puna.home.logs)), "bytes": _bytes(_files(self.puna.home.logs))},
            "database_bytes": _bytes(list(self.puna.home.root.glob("puna.db*"))),
            "rows": rows(self.puna.home),
        }


def process(pid: int) -> dict[str, int]:
    """Memory, threads, children and descriptors of one process."""
    folder = Path("/proc", str(pid))
    status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
    rollup = (folder / "smaps_rollup").read_text().splitlines()
    pss = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    children = [child for path in folder.glob("task/*/children") for child in path.read_text().split()]
    return {
        "rss_kib": int(status["VmRSS"].split()[0]),
        "pss_kib": pss,
        "threads": int(status["Threads"]),
        "children": len(children),
        "descriptors": len(os.listdir(folder / "fd")),
    }


def rows(home: Home) -> dict[str, int]:
    """How many rows each table has."""
    with contextlib.closing(sqlite3.connect(f"file:{home.database}?mode=ro", uri=True)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in sorted(names)}


def _is_zombie(pid: int) -> bool:
    try:
        return b") Z " in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _bytes(paths: list[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total

"""Commands of a build: run with their lines in its log, and ended when they take too much time, disk or files."""

from __future__ import annotations

import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.config.repository import CREDENTIALS
from puna.errors import BuildError, MachineError, UsageError
from puna.process import command as supervised

MAX_LINE_BYTES = 1 << 20
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class BuildCancelledError(BuildError):
    """Somebody asked for the build to stop; nothing of it is left."""


def masked(line: str) -> str:
    """`line` without the credentials of addresses in it and without terminal colours."""
    return CREDENTIALS.sub("***", _ANSI.sub("", line))


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    *,
    log: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> tuple[int, list[str]]:
    """Run `argv` in `folder`, each line of its output given to `log`; `(exit status, lines)`.

    What `cancelled` raises ends the command as well.

    Raises:
        BuildCancelledError: `cancelled()` became true; the command and its descendants have ended.
    """
    lines: list[str] = []
    rest = b""

    def receive(piece: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            whole, rest = [*whole, rest], b""
        for raw in whole:
            tell(raw)

    def tell(raw: bytes) -> None:
        # Carriage returns are how progress bars rewrite a line: what follows the last is what a person would see.
        lines.append(masked(raw.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1]))
        log(lines[-1])

    def check() -> None:
        if cancelled():
            raise BuildCancelledError("the build was cancelled", "nothing of it is left; start it again when ready")

    status = supervised.run(argv, env, receive, folder=folder, check=check)
    if rest:
        tell(rest)
    return status, lines


TIMEOUT, DISK, SLOTS = "PUNA_BUILD_TIMEOUT_S", "PUNA_BUILD_DISK_GIB", "PUNA_BUILD_SLOTS"
"""Set in the environment of `puna up`."""
MOST_FILES = 65536
MOST_PROCESSES = 4096
"""Of a user of its own; one that has other processes is not limited, as theirs would count."""
NICE = 5
"""Builds give way to what serves."""
RESERVE_BYTES = 1 << 30
"""Never taken: where the disk is full, the control plane cannot write either."""
LOOK_S = 5.0


@dataclass(frozen=True)
class BuildLimits:
    """Limits of one build. Memory is not limited by itself: compilers and CUDA map far more than they use."""

    timeout_s: float = 3600.0
    disk_bytes: int = 100 << 30

    @classmethod
    def of_environment(cls) -> BuildLimits:
        """As this process's environment says.

        Raises:
            UsageError: a value that is no number over 0.
        """
        return cls(_number(TIMEOUT, cls.timeout_s), int(_number(DISK, cls.disk_bytes / 2**30) * 2**30))

    def words(self, *, own_user: bool = False) -> list[str]:
        """The beginning of a command that is held to them; empty where the machine has no `prlimit`."""
        if shutil.which("prlimit") is None or shutil.which("nice") is None:
            return []
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        processes = [f"--nproc={MOST_PROCESSES}"] if own_user else []
        limits = ["--core=0", f"--fsize={self.disk_bytes}", f"--nofile={files}", *processes]
        return ["nice", "-n", str(NICE), "prlimit", *limits, "--"]


class BuildWatch:
    """Asked all the time whether a build should end; raises when it takes too much."""

    def __init__(self, path: Path, limits: BuildLimits, cancelled: Callable[[], bool]) -> None:
        """Over the folder that a build writes to; its time begins now."""
        self._path, self._limits, self._cancelled = path, limits, cancelled
        self._begun = self._looked = time.monotonic()

    def __call__(self) -> bool:
        """True when it was cancelled.

        Raises:
            BuildError: it takes too long, or too much of the disk.
            MachineError: the disk is nearly full.
        """
        now, limits = time.monotonic(), self._limits
        if now - self._begun > limits.timeout_s:
            raise BuildError(
                f"the build did not end within {limits.timeout_s:g} s",
                f"look at its last lines; {TIMEOUT}={limits.timeout_s * 2:g} for `puna up` gives it longer",
            )
        if now - self._looked >= LOOK_S:
            self._look()
            self._looked = time.monotonic()
        return self._cancelled()

    def _look(self) -> None:
        free = shutil.disk_usage(self._path).free
        if free < RESERVE_BYTES:
            raise MachineError(
                f"the build was stopped: {free >> 20} MiB are left on the disk of {self._path.parent}",
                "free some space, or set PUNA_HOME to a larger disk",
            )
        used = size_bytes(self._path)
        if used > self._limits.disk_bytes:
            raise BuildError(
                f"the build takes {used / 2**30:.1f} GiB of the disk, over its {self._limits.disk_bytes / 2**30:g}",
                f"ask for less; {DISK} for `puna up` gives it more",
            )


def size_bytes(path: Path) -> int:
    """Size of the files under `path` on the disk, each counted once; many share blocks with a package cache."""
    sizes: dict[tuple[int, int], int] = {}
    for folder, _, files in os.walk(path):
        for file in files:
            try:
                about = os.lstat(os.path.join(folder, file))
            except FileNotFoundError:  # a build is under way
                continue
            sizes[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(sizes.values())


def slots() -> int:
    """The number of environments and bundles built at once: as many as there are cores, but two to four, unless said.

    Raises:
        UsageError: what is said is no number over 0.
    """
    return max(1, round(_number(SLOTS, min(max(len(os.sched_getaffinity(0)), 2), 4))))


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise UsageError(f"{name} is {text!r}", f"a number over 0, e.g. {default:g}")
    return value

"""Retention: old revisions go, and with them their bundles, sources, environments and logs.

Runs in the builder's thread while no bundle is being made, and is told which ones builds under way have made: what is
not named yet is never taken for old.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from puna.artifacts import SHORT, remove
from puna.control.store.retention import Named
from puna.control.store.store import Store
from puna.home import Home
from puna.packaging import source
from puna.packaging.environment import MARKER
from puna.process.locks import HeldError, locked

LOG = logging.getLogger("puna.retention")
LOOK_S = 5.0
"""Between two sweeps at least."""
IDLE_S = 600.0
"""A sweep is due after so long even when nothing was built or deleted: what lies unused grows old."""
BUILDS_KEPT = 200
EVENTS_KEPT = 2000
EXPIRED_KEYS_S = 7 * 86400.0
STRAY_S = 3600.0
"""Files that nothing names, as a killed process leaves them, are left alone for so long."""


@dataclass(frozen=True)
class Retention:
    """Amounts that are kept."""

    revisions: int = 10
    """Of each endpoint, built ones and as many that were not; those in use come on top."""
    unused_s: float = 86400.0
    """Environments that nothing names, and sources that were never deployed, go so long after their last use."""


class Sweeper:
    """Drops what is no longer kept; `look` is called between builds, `sweep` does it now."""

    def __init__(
        self, store: Store, home: Home, kept: Retention | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Over a store and the home beside it."""
        self.store, self.home, self.kept, self.clock = store, home, kept or Retention(), clock
        self._swept = 0.0
        self._seen: tuple[int, ...] = ()
        self._deployed: dict[str, float] = {}
        """Source -> when it was uploaded last, as the sweep saw it that found it named."""

    def look(self, in_use: Collection[str] = ()) -> None:
        """Sweep if it is time to, and something was built or deleted since, or nothing was done for long.

        `in_use` are the digests of bundles that stay although the store does not name them yet.
        """
        now = self.clock()
        if 0 <= now - self._swept < LOOK_S:
            return
        stamp = self.store.retention_stamp()
        if stamp != self._seen or not 0 <= now - self._swept < IDLE_S:
            self._swept = now
            self._seen = stamp if self.sweep(in_use) else ()

    def sweep(self, in_use: Collection[str] = ()) -> bool:
        """Drop rows, then what lies on the disk and is named no more; False: some of it has to wait."""
        now, store, home = self.clock(), self.store, self.home
        # Listed before the store is read: what comes into being meanwhile is not in the list.
        sources, bundles, environments = map(_entries, (home.sources, home.bundles, home.environments))
        caches, build_logs = _entries(home.caches), _entries(home.folder("logs", "builds"))
        app_logs, workspaces = _entries(home.folder("logs", "endpoints")), _entries(home.workspaces)
        revisions, builds = store.drop_revisions(self.kept.revisions), store.drop_builds(BUILDS_KEPT)
        store.drop_events(EVENTS_KEPT)
        store.drop_keys(now - EXPIRED_KEYS_S)
        store.drop_counters()
        named = store.named()
        named = dataclasses.replace(named, bundles=named.bundles | set(in_use))
        if revisions or builds:
            LOG.info("dropped %d old revisions and %d builds", revisions, builds)
        with source.removing(home) as is_alone:
            if is_alone:
                self._sources(sources, named, now)
        for path in build_logs:
            if path.name.partition(".")[0] not in named.builds:  # ID.log, ID.json, and ID.json.part as it is written
                path.unlink(missing_ok=True)
        for path in workspaces:
            if path.name not in named.workspaces and not path.name.startswith("zygote-"):
                self._workspace(path, now)
        if named.is_settled:
            self._artifacts(bundles, caches, named)
            self._environments(environments, named, now)
            for path in app_logs:
                if path.name not in named.endpoints and self._age_s(_changed(path), now) > STRAY_S:
                    shutil.rmtree(path, ignore_errors=True)
        return named.is_settled and is_alone

    # ---- by kind -----------------------------------------------------------------------------------------------

    def _sources(self, found: list[Path], named: Named, now: float) -> None:
        """Those that are named no more, unless uploaded again since; those that never were, after a while."""
        short = {digest[:SHORT] for digest in named.sources}
        for path in found:
            uploaded = _changed(path)
            if path.name in short:
                self._deployed[path.name] = uploaded
            elif uploaded == self._deployed.get(path.name) or self._age_s(uploaded, now) > self.kept.unused_s:
                remove(path)
        self._deployed = {name: at for name, at in self._deployed.items() if name in short}

    def _artifacts(self, bundles: list[Path], caches: list[Path], named: Named) -> None:
        """Bundles, and what their apps have compiled."""
        short = {digest[:SHORT] for digest in named.bundles}
        for path in bundles:
            if path.name not in short:
                remove(path)
        for path in caches:
            if len(path.name) == SHORT and path.name not in short:
                shutil.rmtree(path, ignore_errors=True)

    def _environments(self, found: list[Path], named: Named, now: float) -> None:
        """Those that nothing has used for a while. Minutes of building are worth some disk."""
        short = {digest[:SHORT] for digest in named.environments}
        for path in found:
            if path.name in short:
                _use(path / MARKER, now)
                continue
            if self._age_s(_changed(path / MARKER), now) <= self.kept.unused_s:
                continue
            lock = path.with_name(f".{path.name}.lock")
            with contextlib.suppress(HeldError), locked(lock, timeout_s=0):  # else it is being built this moment
                LOG.info("environment %s goes: nothing has used it for %.1f h", path.name, self.kept.unused_s / 3600)
                (path / MARKER).unlink(missing_ok=True)  # first: half of one is none
                shutil.rmtree(path, ignore_errors=True)
                lock.unlink()

    def _age_s(self, changed: float, now: float) -> float:
        return now - changed if self.store.timeline is None else self.store.timeline.age_s(changed)

    def _workspace(self, path: Path, now: float) -> None:
        """A working copy that a killed control plane left; one whose guard is there is still worked in."""
        if not self.home.guard_socket(path.name).exists() and self._age_s(_changed(path), now) > STRAY_S:
            shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _use(path: Path, now: float) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, (now, now))

"""Which published adapters the engine of an endpoint can load; read again when something has been published."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping

from puna.artifacts import ADAPTER_BASE, SHORT
from puna.home import Home
from puna.publish.registry import Registry, of_base

Stamp = tuple[tuple[str, int], ...]
NONE: Mapping[str, str] = {}
KNOWN = 1000
"""Bundles whose base is remembered."""


class Adapters:
    """The adapters by bundle. Publishing is other processes' work: the registry's files are looked at for changes."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._bases: dict[str, str] = {}
        """Bundle -> the model that its adapters are served on, empty for a bundle of another kind."""
        self._found: dict[str, Mapping[str, str]] = {}
        self._stamp = self._look()

    def of(self, bundle: str) -> Mapping[str, str]:
        """`owner/name` -> folder, of every adapter that a request to this bundle's endpoint may name."""
        base = self._base(bundle)
        if not base:
            return NONE
        with self._lock:
            if base not in self._found:
                self._found[base] = of_base(Registry(self._home), base)
            return self._found[base]

    def have_changed(self) -> bool:
        """True once after something was published or deleted that a bundle asked about may be served with."""
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            before, self._found = self._found, {}
            self._found |= {base: of_base(Registry(self._home), base) for base in before}
            return self._found != before

    def _base(self, bundle: str) -> str:
        known = self._bases.get(bundle)
        if known is not None or not bundle:
            return known or ""
        try:
            about = json.loads((self._home.bundles / bundle[:SHORT] / "bundle.json").read_text())
        except (OSError, ValueError):
            return ""  # the bundle is gone; its endpoint says so when a replica is to start
        if len(self._bases) >= KNOWN:
            self._bases.clear()  # most of them are of revisions long gone
        base = self._bases[bundle] = str(about.get(ADAPTER_BASE) or "")
        return base

    def _look(self) -> Stamp:
        files = sorted(self._home.registry.glob("*/[!.]*.json"))
        return tuple((str(path), path.stat().st_mtime_ns) for path in files if path.exists())

"""Automatic rebuilds: what repositories said of their changes, done one at a time for each endpoint."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

from puna.config.settings import Settings
from puna.control.domain.records import Delivery, Endpoint
from puna.control.domain.states import DeliveryState
from puna.control.operations import deploys
from puna.control.operations.context import Control
from puna.errors import BuildError, NotFoundError, PunaError

LOG = logging.getLogger("puna.rebuilds")
LOOK_S = 1.0
AT_ONCE, OF_ONE_HOST = 16, 4
"""Repositories that are asked at the same time, and those of one host: a slow one holds up nobody else's."""


class Rebuilds:
    """Takes queued deliveries, and asks repositories that no webhook tells of; `run` is its thread."""

    def __init__(self, control: Control, woken: threading.Event | None = None) -> None:
        """Over the control plane's parts; `woken` is set by whoever writes a delivery down."""
        self._control = control
        self._woken = woken or threading.Event()
        self._busy: set[str] = set()
        self._hosts: dict[str, str] = {}
        """Endpoint -> the host that is asked for it."""
        self._asked: dict[str, float] = {}
        self._seen: dict[str, str] = {}
        """Endpoint -> the commit, or the error, that the last look found: each is written down once."""

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def run(self, stop: threading.Event) -> None:
        """Rebuild until `stop`; deliveries that are queued then are done after the next start."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="rebuild") as pool:
            while not stop.is_set():
                self._woken.clear()
                try:
                    for name, job in self.due():
                        self._busy.add(name)
                        pool.submit(self._do, name, job)
                except Exception:  # the log has it, and the loop goes on
                    LOG.exception("automatic rebuilds failed")
                self._woken.wait(LOOK_S)
            pool.shutdown(wait=False, cancel_futures=True)

    def due(self) -> list[tuple[str, Callable[[], None]]]:
        """`(endpoint, what to do for it)` of all that can be done now.

        A delivery waits while its endpoint is being built: all that come meanwhile are one rebuild then.
        """
        store, now = self._control.store, self._control.steady()
        queued, endpoints = store.queued_deliveries(), store.snapshot().endpoints
        building = {b.subject for b in store.unended_builds() if b.kind == "revision"} if queued else set()
        hosts = [self._hosts.get(name, "") for name in list(self._busy)]
        for known in (self._seen, self._asked, self._hosts):
            for name in known.keys() - {endpoint.name for endpoint in endpoints}:
                del known[name]
        found: list[tuple[str, Callable[[], None]]] = []
        # Those that are told of go first: a look can be late.
        for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.name not in queued):
            name, host = endpoint.name, urlsplit(endpoint.settings.git.get("url", "")).hostname or ""
            if name in self._busy or hosts.count(host) >= OF_ONE_HOST:
                continue
            if name in queued and name not in building:
                found.append((name, partial(self.rebuild, name, queued[name])))
            elif self._is_to_be_looked_at(endpoint, now):
                found.append((name, partial(self.look, name, endpoint.settings)))
            else:
                continue
            hosts.append(host)
            self._hosts[name] = host
        return found

    def _is_to_be_looked_at(self, endpoint: Endpoint, now: float) -> bool:
        settings, name = endpoint.settings, endpoint.name
        if not (settings.git and settings.auto_rebuild and settings.poll_s):
            return False
        if now < self._asked.setdefault(name, now) + settings.poll_s:
            return False
        self._asked[name] = now
        return True

    def _do(self, name: str, job: Callable[[], None]) -> None:
        try:
            job()
        except NotFoundError:
            LOG.info("%s was deleted", name)
        except Exception:  # the log has it, and the next endpoint has its turn
            LOG.exception("rebuilding %s failed", name)
        finally:
            self._busy.discard(name)
            self._woken.set()

    def rebuild(self, name: str, deliveries: Sequence[Delivery]) -> None:
        """Fetch and deploy the newest commit, and write down what came of it."""
        store = self._control.store
        try:
            deploys.rebuild(self._control, name, only_changed=True, deliveries=deliveries)
        except Exception as error:  # whoever pushed sees it in the list of deliveries
            if not isinstance(error, PunaError):
                LOG.error("rebuilding %s failed", name, exc_info=error)
                error = BuildError(f"{type(error).__name__}: {error}", "see the log of `puna up`")
            store.endpoint(name)  # a deleted one has no deliveries left
            why = {"message": error.message, "hint": error.hint, "detail": error.detail}
            store.fail_deliveries(name, deliveries, self._control.clock(), **why)

    def look(self, name: str, settings: Settings) -> None:
        """Ask a repository for its newest commit; one that is new is queued like a webhook's word."""
        store = self._control.store
        try:
            found = self._control.head(settings.git)
        except PunaError as error:
            if self._seen.get(name) != error.message:
                store.add_event(name, "rebuild", f"cannot look for changes: {error.message}", self._control.clock())
            self._seen[name] = error.message
            return
        if found not in (settings.git.get("commit"), self._seen.get(name)):
            now = self._control.clock()
            store.add_delivery(Delivery(name, now, "poll", DeliveryState.QUEUED, "look", commit=found))
        self._seen[name] = found

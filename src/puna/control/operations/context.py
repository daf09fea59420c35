"""Parts shared by the API's handlers: store, home, load reports, secrets, and whom to wake."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from puna.backends.machine import NVML, Devices
from puna.control import wire
from puna.control.operations.origins import Made, Pulled, WantedModel
from puna.control.operations.turns import Fetches
from puna.control.resources.secrets import Secrets
from puna.control.store.store import Store
from puna.control.telemetry.history import History
from puna.control.telemetry.load import Loads
from puna.control.telemetry.vitals import Vitals
from puna.control.wire import Memories
from puna.home import Home


@dataclass(frozen=True)
class Control:
    """The control plane's parts, as the API sees them."""

    store: Store
    home: Home
    loads: Loads
    secrets: Secrets
    base_url: str
    """Where the gateway listens, as callers write it; the addresses of endpoints begin with it."""
    wake: Callable[[], None]
    """Called after a build was queued or cancelled."""
    pull: Callable[[Mapping[str, str]], Pulled]
    """Fetches what an endpoint's `git` settings name."""
    head: Callable[[Mapping[str, str]], str]
    """The commit at the end of what they name, without fetching it."""
    make: Callable[[WantedModel], Made]
    """Makes the app of a model."""
    wake_rebuilds: Callable[[], None]
    """Called after a repository's change was written down."""
    warm: Callable[[str, int | None], dict[str, Any] | None]
    """What is to be said of the zygote of an endpoint's revision; None: it has none."""
    fetches: Fetches = field(default_factory=Fetches)
    """Where handlers ask other machines."""
    devices: Devices = NVML
    """This machine's GPUs."""
    gpu_use: Callable[[], Mapping[str, int]] = dict
    """Replica -> bytes of GPU memory that it used a moment ago; those that nobody watches are missing."""
    memories: Memories = wire.NONE
    """What the gateways count."""
    history: History | None = None
    """Figures over time; None where nobody takes them."""
    vitals: Vitals | None = None
    """Its parts' health; None where nobody looks."""
    clock: Callable[[], float] = field(default=time.time)
    """Unix seconds: what is written down, and when keys expire."""
    steady: Callable[[], float] = field(default=time.monotonic)
    """Seconds of a clock that nobody sets: how long ago something was."""

    @contextlib.contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set after each change of the routes, until the block ends."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        with self.store.subscribed(tell):
            yield changed

    def url(self, endpoint: str) -> str:
        """The address at which an endpoint is called."""
        return f"{self.base_url.rstrip('/')}/v2/models/{endpoint}/infer"

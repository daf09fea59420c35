"""A home full of endpoints that are at zero, with revisions, builds and events, and one log of many lines."""

from __future__ import annotations

import time

from puna.config.settings import Settings
from puna.control.domain.records import RevisionSpec
from puna.control.domain.states import BuildState, RevisionState, StepState
from puna.control.store.builds import STEPS
from puna.control.store.store import Store
from puna.home import Home

REVISIONS = 3
EVENTS = 40
SCHEMA = {"inputs": [{"name": "prompt", "datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}]}


def crowd(home: Home, endpoints: int, lines: int) -> None:
    """Write them by the store's own methods, before `puna up` opens it."""
    store = Store(f"sqlite:///{home.database}")
    now = time.time() - 3600
    for number in range(endpoints):
        _endpoint(store, f"shop-{number:03d}", now)
    store.close()
    folder = home.folder("logs", "endpoints", "shop-000")
    with (folder / "shop-000-0a1b2c3d.log").open("w") as file:
        for number in range(lines):
            level = "ERROR" if number % 500 == 499 else "INFO"
            file.write(f"{level} request {number:06d} answered in {number % 97} ms: {'tokens ' * (number % 7)}done\n")


def _endpoint(store: Store, name: str, now: float) -> None:
    settings = Settings(gpu_type="cpu", zygote=False, env={"MODEL": "meta-llama/Meta-Llama-3-8B-Instruct"})
    store.save_endpoint(name, settings, now)
    for number in range(REVISIONS):
        revision = store.add_revision(name, RevisionSpec(f"{number:064x}", None, None, settings), now).number
        build = store.add_build("revision", name, revision, now)
        store.move_build(build.id, BuildState.RUNNING)
        store.move_revision(name, revision, RevisionState.BUILDING, now)
        for step in STEPS["revision"]:
            store.set_step(build.id, step, StepState.DONE, 1.0)
        store.move_build(build.id, BuildState.SUCCEEDED)
        values = {"bundle": f"{number:064x}", "environment": "e" * 64, "schema": SCHEMA}
        store.move_revision(name, revision, RevisionState.BUILT, now, **values)
        store.move_revision(name, revision, RevisionState.STARTING, now)
        store.swap(name, revision, now)
    store.scale(name, 0, "no request for 600 s", now)
    for number in range(EVENTS):
        store.add_event(name, "scale", f"{number % 2} -> {1 - number % 2}: a request waits", now)

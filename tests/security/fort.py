"""What the attacks on routes are made at: a control plane on its Unix socket, a gateway before it, and two owners."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import MetaData, select

from backends.memory import MemoryBackend
from control.conftest import GIB, World, control_of, make_source
from control.rows import build_revision
from puna.artifacts import MANIFEST, SHORT, Model, drafting
from puna.backends.base import GpuDevice
from puna.control.api.app import create_app
from puna.control.domain import api_keys
from puna.control.domain.records import Delivery, Key
from puna.control.domain.states import DeliveryState
from puna.control.operations import push_events
from puna.control.resources.secrets import Secrets
from puna.control.resources.volumes import Volumes
from puna.control.store.store import Store
from puna.control.telemetry.log_files import build_log, replica_log
from puna.home import Home
from puna.publish.registry import Registry
from puna.serve.gateway import Gateway, GatewaySettings
from puna.serve.http.connection import ClientConnection

SECRET = "v4lue-that-nobody-may-read"
YOURS = "y0urs-alone"
"""Stands in the other owner's logs, events, environment and errors."""
MINE = ["mine"]
GIT = {"url": "https://github.com/acme/chat", "branch": "main", "commit": "a" * 40, "credential": "theirs"}
ROUTINE = {"counters", "wishes", "usage", "usage_marks"}
"""Tables that change by themselves."""


class Devices:
    """Two GPUs, so that who holds them can be read."""

    def gpus(self) -> tuple[GpuDevice, ...]:
        return GpuDevice(0, "NVIDIA H100", 80 * GIB), GpuDevice(1, "NVIDIA H100", 80 * GIB)

    def free_bytes(self) -> Mapping[int, int]:
        return {0: 50 * GIB, 1: 15 * GIB}

    def used_bytes(self) -> Mapping[int, Mapping[int, int]]:
        return {}


class Fort:
    """One control plane and one gateway; `call` goes through the gateway, `local` over the socket."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.store = Store(f"sqlite:///{self.home.database}")
        self.world = World(self.store, self.home, MemoryBackend(), now=time.time())
        control = control_of(self.store, self.home, self.world.loads, devices=Devices())
        self.app: FastAPI = create_app(control)
        self.keys: dict[str, str] = {}
        self._tables = MetaData()
        self._people()
        self._things()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)
        self.call = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)
        transport = httpx.HTTPTransport(uds=str(self.home.control_socket))
        self.local = httpx.Client(transport=transport, base_url="http://localhost", timeout=20)

    def _people(self) -> None:
        now = time.time()
        wanted: dict[str, tuple[list[str], list[str] | None, float | None, float]] = {
            "infer": (["infer"], None, None, now),
            "deploy": (["deploy"], None, None, now),
            "admin": (["admin"], None, None, now),
            "deploy of mine": (["deploy"], MINE, None, now),
            "infer of mine": (["infer"], MINE, None, now),
            "admin of mine": (["admin"], MINE, None, now),
            "deploy of nothing": (["deploy"], [], None, now),
            "expired": (["admin"], None, 1.0, now - 60),
            "revoked": (["admin"], None, None, now),
        }
        for name, (scope, endpoints, expires_s, at) in wanted.items():
            key, self.keys[name] = api_keys.make(name, scope, endpoints, expires_s, at)
            self.store.add_key(key)
            if name == "revoked":
                self.store.delete_key(key.id)
        unknown, self.keys["never made"] = api_keys.make("x", ["admin"], None, None, now)
        held = self.key("admin")
        self.keys["another's secret"] = f"puna_{held.id}_{self.keys['never made'].split('_', 2)[2]}"
        self.keys["cut short"] = self.keys["admin"][:-1]
        self.keys["in capitals"] = self.keys["admin"].upper()
        self.keys["its hash"] = f"puna_{held.id}_{held.sha256[:43]}"

    def key(self, name: str) -> Key:
        """What is kept of a key."""
        return next(key for key in self.store.keys() if key.id == self.keys[name].split("_")[1])

    def _things(self) -> None:
        store, now = self.store, time.time()
        self.source = make_source(self.home).digest
        Secrets(store, self.home.key).save("theirs", {"GIT_TOKEN": SECRET}, now)
        Secrets(store, self.home.key).save("unused", {"API_TOKEN": SECRET}, now)
        for name in ("vault", "empty"):
            Volumes(self.home).create(name)
        (self.home.volumes / "vault" / "file").write_text(YOURS)
        store.add_runtime("rt", hashlib.sha256(b"").hexdigest(), f"build:\n  run: ['echo {YOURS}']\n", now)
        for name in ("mine", "yours"):
            mark = YOURS if name == "yours" else "mine"
            for _ in range(2):
                self.world.deploy(
                    name, git=GIT, auto_rebuild=True, env={"MARK": mark}, secrets=("theirs",) if name == "yours" else ()
                )
            self.world.store.add_event(name, "note", mark, now)
            replica_log(self.home, name, f"{name}-1-0").write_text(mark + "\n")
            store.add_replica(name, 2, "0" if name == "yours" else "1", 1.0, now)
        self._model()
        self.build = build_revision(store, "yours", 2, now).id
        self.runtime_build = next(build.id for build in store.builds() if build.kind == "runtime")
        for build in (self.build, self.runtime_build):
            build_log(self.home, build).write_text(YOURS)
        self.delivery = store.add_delivery(
            Delivery("yours", now, "github", DeliveryState.DEPLOYED, "push", "d-0", "0" * 64, message=YOURS)
        ).id

    def _model(self) -> None:
        """A published model that is in the bundle of both."""
        with drafting("model", self.home.models) as draft:
            (draft.path / "config.json").write_text('{"model_type": "llama"}')
        version = Registry(self.home).publish(Model.open(draft.final), "acme/m", force=True)
        named = {"name": version.name, "version": version.version, "digest": version.digest}
        bundle = self.home.bundles / ("b" * SHORT)
        bundle.mkdir(parents=True)
        (bundle / MANIFEST).write_text(json.dumps({"config": {"models": [named]}}))

    def hook_secret(self, name: str) -> str:
        """The secret of an endpoint's webhook."""
        return push_events.secret(self.home.key.read_bytes(), name, self.store.endpoint(name).created)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        gateway = Gateway(GatewaySettings(self.home.control_socket))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_Running(self.app, uds=str(self.home.control_socket)))
            # The gateway reports its load and follows the table over the same socket, as in `puna up`.
            server = await stack.enter_async_context(_Running(gateway, host="127.0.0.1", port=0))
            self.port = server.servers[0].sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    def bearer(self, name: str) -> dict[str, str]:
        """The header of a key."""
        return {"authorization": f"Bearer {self.keys[name]}"}

    def dump(self) -> dict[str, Any]:
        """Every row of every table that does not change by itself, and every file but logs."""
        with self.store.engine.connect() as connection:
            if not self._tables.tables:
                self._tables.reflect(connection)
            rows: dict[str, Any] = {
                table.name: sorted(map(repr, connection.execute(select(table))))
                for table in self._tables.sorted_tables
                if table.name not in ROUTINE
            }
        kept = ("volumes", "sources", "models", "registry", "runs", "environments", "bundles")
        files = (path for name in kept for path in (self.home.root / name).rglob("*"))
        rows["files"] = sorted(f"{path} {path.stat().st_size if path.is_file() else ''}" for path in files)
        return rows

    def close(self) -> None:
        """End both servers."""
        self.call.close()
        self.local.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self.store.close()


class _Running:
    def __init__(self, app: Any, **where: Any) -> None:
        fixed: dict[str, Any] = {
            "log_level": "critical",
            "ws": "none",
            "proxy_headers": False,
            "http": ClientConnection,
        }
        self.server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **fixed, **where))

    async def __aenter__(self) -> uvicorn.Server:
        self.task = asyncio.ensure_future(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        return self.server

    async def __aexit__(self, *_: object) -> None:
        self.server.should_exit = True
        await self.task


@contextmanager
def standing(root: Path) -> Iterator[Fort]:
    """A fort, while the block runs."""
    fort = Fort(root)
    try:
        yield fort
    finally:
        fort.close()


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Tables and files that are not what they were."""
    return [name for name in after if before.get(name) != after[name]]

"""What the client does when its connection breaks: a real server behind a relay that cuts replies off."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from backends.memory import MemoryBackend
from control.conftest import World, control_of, fresh_store
from control.place import document
from control.rows import save_endpoint
from load import load_factor
from puna import errors, instance
from puna.client import Client
from puna.config.settings import Settings
from puna.control.api import openapi
from puna.control.api.app import create_app
from puna.control.domain.records import RevisionSpec
from puna.control.telemetry.log_files import build_log, replica_log
from puna.home import Home
from puna.instance import sole


class Relay:
    """Passes connections on; the first `cuts` are closed as soon as `after(reply begun)` holds, with no byte passed."""

    def __init__(self, port: int) -> None:
        self.cuts = 0
        self.wait_for_reply = True
        self.connections = 0
        self._clients: list[socket.socket] = []
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._clients.append(client)
            cut, self.cuts = self.cuts > 0, max(self.cuts - 1, 0)
            threading.Thread(target=self._pass, args=(client, cut), daemon=True).start()

    def _pass(self, client: socket.socket, cut: bool) -> None:
        with client, socket.create_connection(("127.0.0.1", self._to)) as server:
            up = threading.Thread(target=self._copy, args=(client, server), daemon=True)
            up.start()
            if not cut:
                self._copy(server, client)
            elif self.wait_for_reply:
                server.recv(1)
            else:
                time.sleep(0.3)
            with contextlib.suppress(OSError):  # it has hung up already
                client.shutdown(socket.SHUT_RDWR)
            up.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut_all(self) -> None:
        """End every connection there is."""
        for client in self._clients:
            with contextlib.suppress(OSError):  # it has ended
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = Home(tmp_path / "home")
    store = fresh_store(home)
    yield World(store, home, MemoryBackend(ready_after_s=1.0, stop_takes_s=0.5))
    store.close()


@pytest.fixture
def relay(world: World) -> Iterator[Relay]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(control_of(world.store, world.home)), log_level="critical", ws="none", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    relay = Relay(listener.getsockname()[1])
    yield relay
    relay.close()
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def client(world: World, relay: Relay) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{relay.port}", home=world.home) as client:
        yield client


def test_a_call_whose_reply_was_cut_off_is_not_done_twice(client: Client, world: World, relay: Relay) -> None:
    relay.cuts = 1
    made = client.create_key(["infer"], name="ci")
    assert [key.id for key in world.store.keys()] == [made["id"]] and made["key"].startswith("puna_")
    assert relay.connections == 2


def test_a_call_still_in_flight_is_waited_for(
    client: Client, world: World, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, add = [], world.store.add_key

    def slow(key: Any) -> None:
        calls.append(key)
        time.sleep(1.5)
        add(key)

    monkeypatch.setattr(world.store, "add_key", slow)
    relay.cuts, relay.wait_for_reply = 1, False
    made = client.create_key(["infer"])
    assert len(calls) == 1 and [key.id for key in world.store.keys()] == [made["id"]]


def test_a_file_is_sent_again_from_its_beginning(client: Client, world: World, relay: Relay) -> None:
    client.create_volume("data")
    with Client(f"http://127.0.0.1:{relay.port}", home=world.home) as another:  # which has no connection yet
        relay.cuts = 1
        assert another.put_volume_file("data", "a.bin", io.BytesIO(b"x" * 3_000_000))["bytes"] == 3_000_000
        assert b"".join(another.volume_file("data", "a.bin")) == b"x" * 3_000_000
    assert relay.cuts == 0


def test_a_connection_that_breaks_twice_is_an_error_with_the_next_command(client: Client, relay: Relay) -> None:
    relay.cuts = 2
    with pytest.raises(errors.UnavailableError) as caught:
        client.create_volume("data")
    assert "puna up" in caught.value.hint and relay.connections == 2


def test_events_come_as_the_document_says(client: Client, world: World, relay: Relay) -> None:
    told = next(o for _, _, o in openapi.operations(document()) if o["operationId"] == "get_stream")["responses"]["200"]
    with httpx.stream("GET", f"http://127.0.0.1:{relay.port}/api/v1/events/stream") as reply:
        assert reply.status_code == 200 and reply.headers["content-type"].partition(";")[0] in told["content"]
        assert next(reply.iter_lines()) == "event: state"
    events = client.watch()
    assert next(events) == {"endpoints": [], "builds": [], "gone": []}
    world.deploy("app")
    assert next(events)["endpoints"][0]["name"] == "app"


def test_logs_that_are_followed_come_as_they_are_written(client: Client, world: World) -> None:
    world.deploy("app")
    log = replica_log(world.home, "app", "app-1")
    log.write_text("one\n")
    lines = client.logs("app", follow=True)
    assert next(lines) == "app-1 | one"
    with log.open("a") as file:
        file.write("two\n")
    assert next(lines) == "app-1 | two"


def test_a_control_plane_that_starts_again_is_waited_for(world: World) -> None:
    app = create_app(control_of(world.store, world.home))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="off"))

    def serve() -> None:
        time.sleep(1.0)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(world.home.control_socket))
            listener.listen()
            server.run([listener])

    with sole(world.home), Client(home=world.home) as client:
        instance.write_state(world.home, "http://127.0.0.1:1")
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert client.endpoints() == []
        server.should_exit = True
        thread.join(10)


def test_a_control_plane_whose_puna_up_has_ended_is_not_waited_for(world: World) -> None:
    began = time.monotonic()
    instance.write_state(world.home, "http://127.0.0.1:1")  # of a process that does not hold the home's lock
    with Client(home=world.home) as client, pytest.raises(errors.UnavailableError, match="does not answer"):
        client.endpoints()
    assert time.monotonic() - began < 5.0 * load_factor()


def test_a_build_that_is_followed_is_followed_on_when_its_connection_breaks(
    client: Client, world: World, relay: Relay
) -> None:
    save_endpoint(world.store, "app", Settings(), 1.0)
    spec = RevisionSpec("f" * 64, None, None, Settings())
    world.store.deploy("app", lambda *_: spec, 1.0)
    build = world.store.builds()[0]
    log = build_log(world.home, build.id)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("one\ntwo\n")
    lines = client.build_log(build.id)
    assert [next(lines), next(lines)] == ["one", "two"]
    relay.cut_all()
    with log.open("a") as file:
        file.write("three\n")
    assert next(lines) == "three"
    world.store.cancel_build(build.id, 2.0)
    assert list(lines) == []

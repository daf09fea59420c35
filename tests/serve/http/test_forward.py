"""While the control plane is replaced, what comes for it waits at the gateway; when it stays away, that is said."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop

from puna.serve.gateway import Gateway, GatewaySettings
from puna.serve.http import forward
from serve.conftest import until
from serve.test_gateway import KEY, StubControl, running

pytestmark = pytest.mark.process


class Replaced(StubControl):
    """A control plane that goes away with what it has, and comes back at the same socket."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self.socket = socket
        self.holds = False
        self.held: list[str] = []
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.holds and scope["path"].startswith("/api"):
            self.held.append(scope["method"])
            await asyncio.Event().wait()
        await super().__call__(scope, receive, send)

    async def begin(self) -> None:
        self.holds = False
        config = uvicorn.Config(self, uds=str(self.socket), log_level="critical", ws="none")
        server = self._server = uvicorn.Server(config)
        self._task = asyncio.ensure_future(server.serve())
        await until(lambda: server.started)

    async def die(self) -> None:
        """As SIGKILL would: the socket refuses, connections are cut."""
        assert self._server is not None and self._task is not None
        for server in self._server.servers:
            server.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.socket.unlink(missing_ok=True)


Play = Callable[[Replaced, httpx.AsyncClient, Gateway], Awaitable[None]]


def story(folder: Path, play: Play) -> None:
    async def main() -> None:
        control = Replaced(folder / "control")
        await control.begin()
        gateway = Gateway(GatewaySettings(folder / "control"))
        async with running(gateway, host="127.0.0.1", port=0) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                try:
                    await asyncio.wait_for(play(control, client, gateway), 60)
                finally:
                    control.close()
                    await control.die()

    uvloop.run(main())


def test_what_comes_while_the_control_plane_is_replaced_waits_and_is_done_once(sockets: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"in "
        yield b"pieces"

    async def play(control: Replaced, client: httpx.AsyncClient, gateway: Gateway) -> None:
        await control.die()
        asking = [
            asyncio.ensure_future(one)
            for one in (
                client.get("/api/v1/endpoints?a=1", headers=KEY),
                client.post("/api/v1/webhooks/e", content=b"of a stranger"),
                client.put("/api/v1/sources", content=pieces(), headers=KEY),
                client.delete("/api/v1/endpoints/e", headers=KEY),
            )
        ]
        await until(lambda: gateway.control.waiting == 4)
        assert not any(one.done() for one in asking)
        await control.begin()
        got = [one.json() for one in await asyncio.gather(*asking)]
        assert [one["body"] for one in got] == ["", "of a stranger", "in pieces", ""]
        assert sorted(control.forwarded) == sorted(one["path"] for one in got), "each came once"
        assert gateway.control.waiting == 0

    story(sockets, play)


@pytest.mark.parametrize(
    ("method", "headers", "is_repeated"),
    [
        ("GET", {}, True),
        ("POST", {"idempotency-key": "once"}, True),
        ("POST", {}, False),
        ("DELETE", {}, False),
    ],
)
def test_of_what_the_control_plane_had_when_it_died_only_what_may_be_done_twice_is_sent_again(
    sockets: Path, method: str, headers: dict[str, str], is_repeated: bool
) -> None:
    async def play(control: Replaced, client: httpx.AsyncClient, gateway: Gateway) -> None:
        control.holds = True
        asking = asyncio.ensure_future(client.request(method, "/api/v1/endpoints/e", headers=headers))
        await until(lambda: control.held == [method])
        await control.die()
        if is_repeated:
            await until(lambda: gateway.control.waiting == 1)
            await control.begin()
            assert (await asking).status_code == 200 and control.forwarded == ["/api/v1/endpoints/e"]
        else:
            reply = await asking
            assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
            assert f"while it had this {method}" in reply.json()["error"]["message"]
            assert control.forwarded == []

    story(sockets, play)


def test_a_control_plane_that_stays_away_is_waited_for_once_and_then_nobody_waits(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "RESTART_S", 0.5)

    async def play(control: Replaced, client: httpx.AsyncClient, gateway: Gateway) -> None:
        loop = asyncio.get_running_loop()
        await control.die()
        began = loop.time()
        replies = await asyncio.gather(*(client.get("/api/v1/endpoints", headers=KEY) for _ in range(3)))
        assert loop.time() - began >= 0.3
        began = loop.time()
        replies += [await client.get("/api/v1/endpoints", headers=KEY) for _ in range(5)]
        assert loop.time() - began < 5 * 0.5, "it is known to be away by now"
        for reply in replies:
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 5
            error = reply.json()["error"]
            assert "does not answer" in error["message"] and "`puna up`" in error["hint"]
        await control.begin()
        await until(lambda: gateway.control._silent_since is None)
        assert (await client.get("/api/v1/endpoints", headers=KEY)).status_code == 200

    story(sockets, play)


def test_probes_do_not_wait_and_a_client_that_leaves_gives_its_place_back(sockets: Path) -> None:
    async def play(control: Replaced, client: httpx.AsyncClient, gateway: Gateway) -> None:
        await control.die()
        assert (await client.get("/api/v1/health")).status_code == 503
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/api/v1/endpoints", headers=KEY, timeout=0.3)
        await until(lambda: gateway.control.waiting == 0)

    story(sockets, play)


def test_no_more_wait_than_may_be_out_at_a_time(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(control: Replaced, client: httpx.AsyncClient, gateway: Gateway) -> None:
        await control.die()
        gateway.control.most_open = 4
        waiting = [asyncio.ensure_future(client.get("/api/v1/endpoints", headers=KEY)) for _ in range(4)]
        await until(lambda: gateway.control.waiting == 4)
        refused = await client.get("/api/v1/endpoints", headers=KEY)
        assert refused.status_code == 503 and "too many requests" in refused.json()["error"]["message"]
        await control.begin()
        assert {one.status_code for one in await asyncio.gather(*waiting)} == {200}

    story(sockets, play)

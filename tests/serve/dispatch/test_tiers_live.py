"""A real worker that sleeps, under a gateway: both sides of the frames, nothing pretended."""

import asyncio
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from puna.backends.local import worker_folder
from puna.worker import protocol
from serve.conftest import until
from serve.test_gateway import INFER, KEY, World, story
from worker.conftest import PROMPT_SCHEMA, Worker

pytestmark = pytest.mark.process

NAPPER = """
    import time
    class InferlessPythonModel:
        def initialize(self):
            self.is_awake, self.wakes = True, 0
        def sleep(self):
            self.is_awake = False
        def wake(self):
            time.sleep(1.2)  # longer than inference_time
            self.is_awake, self.wakes = True, self.wakes + 1
        def infer(self, inputs):
            return {"prompt": inputs["prompt"], "is_awake": self.is_awake, "wakes": self.wakes}
"""
PLACES = 6


async def ask(world: World, prompt: str) -> tuple[httpx.Response, dict[str, object]]:
    body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [prompt]}]}
    reply = await world.client.post(INFER, headers=KEY, json=body)
    assert reply.status_code == 200, reply.text
    return reply, {item["name"]: item["data"][0] for item in reply.json()["outputs"]}


def test_again_and_again_twenty_requests_at_once_wake_a_worker_once_and_each_has_its_reply(
    sockets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(textwrap.dedent(NAPPER))
    (folder / "input_schema.py").write_text(textwrap.dedent(PROMPT_SCHEMA))
    pyz = worker_folder(tmp_path)
    worker = Worker(sys.executable, pyz, folder, str(sockets / "w"), "--concurrency", str(PLACES))

    async def play(world: World) -> None:
        owner = worker.ready()
        route = SimpleNamespace(id="r1", path=worker.path, concurrency=PLACES, tier="awake")
        world.control.set(route, inference_time_s=1.0)  # type: ignore[arg-type]
        await until(lambda: "e" in world.gateway.pool.by_name)
        await world.connected()
        connection = next(iter(world.gateway.pool.by_name["e"].connections.values()))
        for number in range(1, 4):
            owner.socket.sendall(protocol.encode(protocol.SLEEP))
            await until(lambda: connection.asleep)
            answers = await asyncio.gather(*(ask(world, str(n)) for n in range(20)))
            told = [outputs for _, outputs in answers]
            assert told == [{"prompt": str(n), "is_awake": True, "wakes": number} for n in range(20)]
            assert {reply.headers["x-puna-tier"] for reply, _ in answers} == {"asleep"}
            wakes = [float(reply.headers["x-puna-wake-ms"]) for reply, _ in answers]
            assert max(wakes) >= 1200 and sum(wake_ms > 0 for wake_ms in wakes) <= PLACES
            longest, _ = max(answers, key=lambda answer: float(answer[0].headers["x-puna-wake-ms"]))
            assert float(longest.headers["x-puna-infer-ms"]) < max(wakes)
        awake, _ = await ask(world, "again")
        assert (awake.headers["x-puna-tier"], awake.headers["x-puna-wake-ms"]) == ("awake", "0.0")

    try:
        story(sockets, play)
    finally:
        worker.end()

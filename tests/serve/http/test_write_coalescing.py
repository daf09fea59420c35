"""Writes that are held until the end of the loop's turn."""

import asyncio
from typing import Any

from puna.serve.http.connection import CoalescingTransport


class Recorder:
    """A transport that notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


async def coalescing() -> tuple[CoalescingTransport, Recorder]:
    recorder = Recorder()
    return CoalescingTransport(recorder, asyncio.get_running_loop()), recorder  # type: ignore[arg-type]


def test_what_is_written_in_one_turn_goes_out_in_one_write_in_order() -> None:
    async def main() -> None:
        transport, recorder = await coalescing()
        transport.write(b"head ")
        transport.write(b"body")
        assert recorder.done == []
        await asyncio.sleep(0)
        assert recorder.done == [b"head body"]
        transport.write(b"next")
        await asyncio.sleep(0)
        assert recorder.done == [b"head body", b"next"]

    asyncio.run(main())


def test_closing_sends_what_is_left_first_and_nothing_afterwards() -> None:
    async def main() -> None:
        transport, recorder = await coalescing()
        transport.write(b"last")
        transport.close()
        transport.write(b"too late")
        await asyncio.sleep(0)
        assert recorder.done == [b"last", "closed"]

    asyncio.run(main())

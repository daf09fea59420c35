"""One timer for many deadlines."""

import asyncio

import uvloop

from puna.serve.dispatch.call import Deadlines


def test_each_is_late_at_its_time_whatever_the_order_and_those_removed_never_are() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        late: list[str] = []
        deadlines = Deadlines[str](late.append)
        now = loop.time()
        for name, after_s in (("third", 0.09), ("first", 0.01), ("gone", 0.02), ("second", 0.05)):
            deadlines.add(name, now + after_s)
        deadlines.remove("gone")
        deadlines.remove("never here")
        while len(late) < 3:
            await asyncio.sleep(0.005)
        assert late == ["first", "second", "third"] and loop.time() - now >= 0.09
        deadlines.add("later", loop.time() + 0.01)
        while len(late) < 4:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_one_that_is_due_at_once_keeps_no_other_from_being_watched() -> None:
    async def play() -> None:
        late: list[str] = []
        deadlines, now = Deadlines[str](late.append), asyncio.get_running_loop().time()
        deadlines.add("due", now)
        deadlines.add("overdue", now - 1)
        deadlines.add("never", now + 3600)
        while len(late) < 2:
            await asyncio.sleep(0.005)
        assert late == ["overdue", "due"]

    uvloop.run(asyncio.wait_for(play(), 10))

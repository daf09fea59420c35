"""Log files: last lines, following, and that nobody reads a file that is no log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from puna.deploy import logs
from puna.errors import NotFoundError
from puna.home import Home


async def collect(stream: AsyncIterator[bytes], count: int) -> list[str]:
    found: list[str] = []
    async for part in stream:
        found += part.decode().splitlines()
        if len(found) >= count:
            break
    return found


def test_the_last_lines_of_a_file_and_of_none(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert logs.last_lines(path, 5) == ""
    path.write_text("".join(f"{n}\n" for n in range(100_000)))
    assert logs.last_lines(path, 2) == "99998\n99999\n" and logs.last_lines(path, 0) == ""


def test_as_many_lines_as_asked_for_come_however_long_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("".join(f"{n:06d} {'x' * 60}\n" for n in range(100_000)))
    found = logs.last_lines(path, 100_000).splitlines()
    assert (len(found), found[0][:6], found[-1][:6]) == (100_000, "000000", "099999")
    assert len(logs.last_lines(path, 70_000).splitlines()) == 70_000
    assert len(logs.last_lines(path, 100_000, most_bytes=logs.CHUNK_BYTES)) <= logs.CHUNK_BYTES


def test_the_last_lines_of_all_replicas_are_those_of_whoever_wrote_last(home: Home) -> None:
    for number in range(3):
        path = logs.replica_log(home, "app", f"app-{number}")
        path.write_text(f"{number} a\n{number} b\n")
        os.utime(path, (number, number))
    assert logs.tail_replicas(home, "app", None, 3).splitlines() == ["app-1 | 1 b", "app-2 | 2 a", "app-2 | 2 b"]
    assert logs.tail_replicas(home, "app", "app-0", 9) == "0 a\n0 b\n"


def test_replicas_that_start_later_are_followed_too_in_whole_lines(home: Home) -> None:
    logs.replica_log(home, "app", "app-1").write_text("old\nlast\n")

    async def story() -> list[str]:
        async def write() -> None:
            await asyncio.sleep(0.05)
            logs.replica_log(home, "app", "app-2").write_text("new\nhal")
            await asyncio.sleep(2.5 * logs.POLL_S)
            with logs.replica_log(home, "app", "app-2").open("a") as file:
                file.write("f\n")

        writing = asyncio.create_task(write())
        found = await asyncio.wait_for(collect(logs.follow_replicas(home, "app", None, 1), 3), 10)
        await writing
        return found

    assert asyncio.run(story()) == ["app-1 | last", "app-2 | new", "app-2 | half"]


def test_a_file_that_ends_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"x" * (logs.CHUNK_BYTES + 5))
    found = asyncio.run(collect(logs.follow(path, lambda: True), 10**9))
    assert "".join(found) == "x" * (logs.CHUNK_BYTES + 5)


@pytest.mark.parametrize("replica", ["../secret", "a/b", ".", "", "missing"])
def test_only_logs_are_read(home: Home, replica: str) -> None:
    (home.folder("logs", "endpoints") / "secret.log").write_text("x")
    with pytest.raises(NotFoundError):
        logs.replica_logs(home, "app", replica)


def test_old_logs_go(home: Home) -> None:
    for number in range(logs.KEPT + 5):
        logs.replica_log(home, "app", f"app-{number:03}").write_text("x")
    logs.prune(home, "app")
    assert len(logs.replica_logs(home, "app")) == logs.KEPT

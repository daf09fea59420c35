"""Logs: last lines, pages, searching, following, 100,000 lines at once; and that nobody reads a file that is no log."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from puna.control.telemetry import log_files
from puna.control.telemetry.log_files import LineFilter, View, backwards, iso, newest
from puna.errors import NotFoundError, UsageError
from puna.home import Home

NOON = 1_764_072_000.0  # 2025-11-25 12:00 UTC


def stamped(seconds: float, text: str, stream: str = "stdout") -> str:
    return f"{iso(NOON + seconds)} {stream} F {text}\n"


async def collect(stream: AsyncIterator[bytes], count: int) -> list[str]:
    found: list[str] = []
    async for part in stream:
        found += part.decode().splitlines()
        if len(found) >= count:
            break
    return found


def test_the_last_lines_of_a_file_and_of_none(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert log_files.last_lines(path, 5) == ""
    path.write_text("".join(f"{n}\n" for n in range(100_000)))
    assert log_files.last_lines(path, 2) == "99998\n99999\n" and log_files.last_lines(path, 0) == ""
    assert log_files.last_lines(path, 3, LineFilter("9998")) == "99988\n99989\n99998\n"


def test_as_many_lines_as_asked_for_come_however_long_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("".join(f"{n:06d} {'x' * 60}\n" for n in range(100_000)))
    found = log_files.last_lines(path, 100_000).splitlines()
    assert (len(found), found[0][:6], found[-1][:6]) == (100_000, "000000", "099999")
    assert len(log_files.last_lines(path, 70_000).splitlines()) == 70_000
    assert len(log_files.last_lines(path, 100_000, most_bytes=log_files.CHUNK_BYTES)) <= log_files.CHUNK_BYTES


def test_the_last_lines_of_all_replicas_are_those_of_whoever_wrote_last(home: Home) -> None:
    for number in range(3):
        path = log_files.replica_log(home, "app", f"app-{number}")
        path.write_text(f"{number} a\n{number} b\n")
        os.utime(path, (number, number))
    assert View(home, "app").tail(3).splitlines() == ["app-1 | 1 b", "app-2 | 2 a", "app-2 | 2 b"]
    assert View(home, "app", "app-0").tail(9) == "0 a\n0 b\n"


def test_any_file_read_backwards_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, dice = tmp_path / "x.log", random.Random(7)
    for _ in range(200):
        monkeypatch.setattr(log_files, "BLOCK_BYTES", dice.randint(1, 40))
        lines = ["".join(dice.choices("ab\r é", k=dice.randint(0, 30))) for _ in range(dice.randint(0, 12))]
        text = "\n".join(lines) + dice.choice(["", "\n"])
        path.write_text(text, newline="")
        read = list(backwards(path, "x"))
        assert [line.text for line in reversed(read)] == (text.removesuffix("\n").split("\n") if text else [])
        data = path.read_bytes()
        assert all(data[line.place :].startswith(line.text.encode()) for line in read)
        found = list(backwards(path, "x", LineFilter("AB")))
        assert found == [line for line in read if "ab" in line.text]


def test_lines_of_replicas_stand_in_the_order_in_which_they_were_written(home: Home) -> None:
    log_files.replica_log(home, "app", "app-1").write_text(stamped(1, "a") + "raw\n" + stamped(4, "b"))
    log_files.replica_log(home, "app", "app-2").write_text(stamped(2, "c") + stamped(3, "d", "stderr"))
    assert View(home, "app").tail(9) == "app-1 | a\napp-1 | raw\napp-2 | c\napp-2 | d\napp-1 | b\n"
    assert View(home, "app", "app-2", times=True).tail(1) == f"{iso(NOON + 3)} d\n"
    page, *_ = View(home, "app").page(1)
    assert (page[0].at, page[0].stream, page[0].text) == (iso(NOON + 4), "stdout", "b")
    raw = next(line for line in newest(View(home, "app").files()) if line.text == "raw")
    assert raw.at == iso(NOON + 1)  # as the line before it


def test_lines_are_found_by_text_by_request_and_by_time(home: Home) -> None:
    log = log_files.replica_log(home, "app", "app-1")
    lines = ["[r1] Hello", "[r2] hello [r1] ", "puna: [r1] infer raised:", "[r1] ValueError: x", "outside", "[r11] no"]
    log.write_text("".join(stamped(n, text) for n, text in enumerate(lines)))

    def found(**wanted: str) -> list[int]:
        return [lines.index(line) for line in View(home, "app", "app-1", LineFilter(**wanted)).tail(99).splitlines()]

    assert found(search="hELLO") == [0, 1] and found(request="r1") == [0, 2, 3]
    assert found(request="r1", search="error") == [3] and found(search="nothing") == []
    assert found(since=iso(NOON + 4)) == [4, 5] and found(since=iso(NOON + 1), until=iso(NOON + 3)) == [1, 2]
    assert found(since=iso(NOON + 1), search="[r1] ") == [1, 2, 3]


def test_pages_follow_on_each_other_whatever_is_written_meanwhile(home: Home) -> None:
    for replica in (1, 2, 3):
        text = "".join(stamped(n, f"{replica}.{n}") for n in range(replica, 60, 3))
        log_files.replica_log(home, "app", f"app-{replica}").write_text(text)
    found, following = View(home, "app").page(7)
    seen = [line.text for line in found]
    while following:
        with log_files.replica_log(home, "app", "app-1").open("a") as file:
            file.write(stamped(100, "new"))
        log_files.replica_log(home, "app", "app-4").write_text(stamped(0, "newer"))
        found, following = View(home, "app").page(7, following)
        seen += [line.text for line in found]
    assert [int(text.partition(".")[2]) for text in seen] == list(range(59, 0, -1)) and "new" not in seen
    assert View(home, "app").page(500)[1] == ""


@pytest.mark.parametrize(
    "token", ["x", "bnVsbA", "W10", "eyJhIjoiYiJ9", "eyJhIjotMX0", "eyJhIjoxfQ", "é", "a" * 5000, "W1tb" * 3000]
)
def test_a_token_that_came_with_no_page_is_refused(home: Home, token: str) -> None:
    with pytest.raises(UsageError, match="token"):
        View(home, "app").page(5, token)


def test_100_000_lines_are_searched_without_reading_them_one_by_one(home: Home) -> None:
    for replica in range(2):
        with log_files.replica_log(home, "app", f"app-{replica}").open("w") as file:
            for n in range(50_000):
                file.write(stamped(n / 100 + replica / 300, f"[req-{n}] request {n} took {n % 97} ms, as the most do"))
    budget_s = 0.3  # of this process's own time: other tests run beside this one
    asked = {LineFilter(): 200, LineFilter("REQUEST 777 took"): 2, LineFilter("none"): 0, LineFilter("", "req-5"): 2}
    for wanted, count in asked.items():
        began = time.process_time()
        assert len(View(home, "app", wanted=wanted).tail(200).splitlines()) == count
        assert time.process_time() - began < budget_s, wanted


def test_replicas_that_start_later_are_followed_too_in_whole_lines(home: Home) -> None:
    log_files.replica_log(home, "app", "app-1").write_text("old\n" + stamped(0, "last") + "hal")

    async def story() -> list[str]:
        async def write() -> None:
            await asyncio.sleep(0.05)
            log_files.replica_log(home, "app", "app-2").write_text(stamped(1, "new") + "hal")
            await asyncio.sleep(2.5 * log_files.POLL_S)
            for replica in (2, 1):
                with log_files.replica_log(home, "app", f"app-{replica}").open("a") as file:
                    file.write("f\n")
                await asyncio.sleep(2.5 * log_files.POLL_S)

        writing = asyncio.create_task(write())
        found = await asyncio.wait_for(collect(View(home, "app").follow(1), 4), 10)
        await writing
        return found

    assert asyncio.run(story()) == ["app-1 | last", "app-2 | new", "app-2 | half", "app-1 | half"]


def test_what_is_not_searched_for_is_not_followed(home: Home) -> None:
    log = log_files.replica_log(home, "app", "app-1")
    log.write_text(stamped(0, "[r1] a") + stamped(0, "[r2] b"))

    async def story() -> list[str]:
        async def write() -> None:
            await asyncio.sleep(0.05)
            with log.open("a") as file:
                file.write(stamped(1, "[r2] c") + stamped(1, "[r1] d"))

        writing = asyncio.create_task(write())
        found = await asyncio.wait_for(collect(View(home, "app", "app-1", LineFilter(request="r1")).follow(9), 2), 10)
        await writing
        return found

    assert asyncio.run(story()) == ["[r1] a", "[r1] d"]


def test_a_file_that_ends_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"x" * (log_files.CHUNK_BYTES + 5))
    found = asyncio.run(collect(log_files.follow(path, lambda: True), 10**9))
    assert "".join(found) == "x" * (log_files.CHUNK_BYTES + 5)


@pytest.mark.parametrize("replica", ["../secret", "a/b", ".", "", "missing"])
def test_only_logs_are_read(home: Home, replica: str) -> None:
    (home.folder("logs", "endpoints") / "secret.log").write_text("x")
    with pytest.raises(NotFoundError):
        View(home, "app", replica)


def test_a_log_that_is_pruned_while_it_is_listed_is_no_error(home: Home) -> None:
    path = log_files.replica_log(home, "app", "app-1")
    path.symlink_to(home.root / "gone")
    assert log_files.replica_logs(home, "app") == [path] and View(home, "app").tail(5) == ""
    os.unlink(path)

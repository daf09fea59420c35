"""What logs may take: the beginning of a large one goes while its writer and its readers go on, old ones go whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from puna.control.telemetry import log_files, log_limits
from puna.control.telemetry.log_files import View, backwards, build_log, replica_log
from puna.control.telemetry.log_limits import LogLimits, cut, hold
from puna.home import Home

NOW = 1_764_072_000.0


def age_s(changed: float) -> float:
    return NOW - changed


def lines(path: Path) -> list[int]:
    return [int(line.text) for line in reversed(list(backwards(path, "x")))]


@pytest.mark.parametrize("has_holes", [True, False])
def test_a_large_log_keeps_its_newest_lines_and_its_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_holes: bool
) -> None:
    if not has_holes:
        monkeypatch.setattr(log_limits, "_punch", lambda *_: False)
    path = tmp_path / "x.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(20_000):
        os.write(fd, b"%09d\n" % number)
    cut(path, 40_960)
    os.write(fd, b"%09d\n" % 20_000)
    found = lines(path)
    os.close(fd)
    assert found == list(range(found[0], 20_001))
    assert 40_960 / 10 - 1 <= len(found) < 40_960 / 10 + 500 if has_holes else found == [20_000]
    assert path.stat().st_blocks * 512 < 40_960 + 2 * 4096
    told = asyncio.run(collect(path))
    assert told == found
    before = path.stat()
    cut(path, 40_960)  # it is within its limit now
    assert path.stat().st_blocks == before.st_blocks and lines(path) == found


async def collect(path: Path) -> list[int]:
    text = b"".join([part async for part in log_files.follow(path, lambda: True)]).decode()
    _, _, whole = text.partition("\n") if not text.startswith("000020000") else ("", "", text)
    return [int(line) for line in whole.splitlines()]


def make(path: Path, size_bytes: int, age_s: float) -> Path:
    path.write_bytes(b"x" * (size_bytes - 1) + b"\n")
    os.utime(path, (NOW - age_s, NOW - age_s))
    return path


def test_old_logs_of_replicas_that_ended_go_by_count_size_and_age(home: Home) -> None:
    limits = LogLimits(endpoint_bytes=10 * 8192, age_s=10_000.0, count=5)
    for number in range(8):
        make(replica_log(home, "many", f"many-{number}"), 100, 4000.0 + number)
        make(replica_log(home, "large", f"large-{number}"), 3 * 8192, 4000.0 + number)
        make(replica_log(home, "old", f"old-{number}"), 100, 2500.0 * number)
    hold(home, {"many-7", "large-6"}, age_s, limits)

    def left(name: str) -> list[str]:
        return sorted(path.stem for path in log_files.replica_logs(home, name))

    assert left("many") == ["many-0", "many-1", "many-2", "many-3", "many-4", "many-7"]
    assert left("large") == ["large-0", "large-1", "large-2", "large-6"]
    assert left("old") == ["old-0", "old-1", "old-2", "old-3", "old-4"]


def test_a_log_that_has_just_begun_is_nobodys_yet_and_stays(home: Home) -> None:
    for number in range(8):
        make(replica_log(home, "app", f"app-{number}"), 100, 60.0)
    hold(home, set(), age_s, LogLimits(count=1))
    assert len(View(home, "app").files()) == 8


def test_builds_and_puna_itself_have_limits_too(home: Home) -> None:
    limits = LogLimits(log_bytes=8192, build_bytes=4096)
    paths = [build_log(home, "b1"), home.logs / "gateway-0.log", replica_log(home, "app", "app-1")]
    for path in paths:
        path.write_text("line\n" * 100_000)
    hold(home, {"app-1"}, age_s, limits)
    assert all(path.stat().st_blocks * 512 <= 16384 for path in paths)
    assert log_files.last_lines(paths[0], 10**6).count("line\n") >= 4096 // 5 - 1

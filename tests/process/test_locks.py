"""A lock is held by one process at a time, for as long as it lives, on the file that its path names."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from puna.process.locks import HeldError, acquire, locked

HOLD = (
    "import os, sys; from puna.process.locks import acquire; fd = acquire(sys.argv[1]); "
    "os.write(fd, str(os.getpid()).encode()); print(flush=True); sys.stdin.read()"
)


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the lock until its stdin ends."""
    argv = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        yield process


@pytest.mark.process
def test_a_held_lock_is_refused_and_its_holder_named_until_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        for shared in (False, True):
            with pytest.raises(HeldError, match=f"lock is locked by process {process.pid}") as refused:
                acquire(path, shared=shared, timeout_s=0)
            assert refused.value.holder == str(process.pid)
        process.kill()
        process.wait()
        os.close(acquire(path, timeout_s=0))


@pytest.mark.process
def test_what_a_holder_starts_does_not_keep_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", timeout_s=0):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.close(acquire(tmp_path / "lock", timeout_s=0))
    child.kill()
    child.wait()


def test_several_may_share_one_and_nobody_else_has_it_then(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, shared=True, timeout_s=0), locked(path, shared=True, timeout_s=0):
        with pytest.raises(HeldError, match="another process"):
            acquire(path, timeout_s=0)
    with locked(path, timeout_s=0):
        pass


def test_it_is_waited_for_until_it_is_free_or_time_is_over(tmp_path: Path) -> None:
    path, waits = tmp_path / "lock", 0

    def waiting() -> None:
        nonlocal waits
        waits += 1
        if waits == 2:
            os.close(first)
        if waits == 9:
            raise InterruptedError

    first = acquire(path)
    began = time.monotonic()
    with pytest.raises(HeldError):
        acquire(path, timeout_s=0.3)
    assert 0.3 <= time.monotonic() - began < 20
    os.close(acquire(path, waiting=waiting))
    assert waits == 2
    with locked(path), pytest.raises(InterruptedError):
        acquire(path, waiting=waiting)
    os.close(acquire(path, timeout_s=0))


@pytest.mark.parametrize("polls", [True, False])
def test_a_lock_on_a_file_that_was_removed_counts_for_nothing(tmp_path: Path, polls: bool) -> None:
    """Its holder removes it, as guards and the clean-up do: who waited for it has the one that is there now."""
    path, taken = tmp_path / "lock", threading.Event()
    first, found = acquire(path), []

    def wait() -> None:
        taken.set()
        found.append(acquire(path, timeout_s=60 if polls else None))

    thread = threading.Thread(target=wait)
    thread.start()
    taken.wait()
    time.sleep(0.1)
    path.unlink()
    os.close(first)
    thread.join(60)
    assert os.path.samestat(os.fstat(found[0]), path.stat())
    with pytest.raises(HeldError):
        acquire(path, timeout_s=0)
    os.close(found[0])

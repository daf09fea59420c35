"""What /health tells of the control plane, and when a fresh process is better than this one."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from puna.control.store.store import Store
from puna.control.telemetry.load import Loads
from puna.control.telemetry.vitals import STILL_S, STUCK_S, Stillness, Vitals
from puna.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    store = Store(f"sqlite:///{home.database}")
    yield store
    store.close()


@pytest.fixture
def vitals(store: Store, home: Home) -> Vitals:
    home.control_socket.touch()
    return Vitals(store, home, Loads(), ["essential"])


class Thread:
    """A thread in `body`, known to its vitals as a loop."""

    def __init__(self, vitals: Vitals, body: Callable[[], object], name: str = "essential") -> None:
        self.turns = vitals.turns(name, threading.Event())
        self._began = threading.Event()

        def run() -> None:
            self.turns.is_set()
            self._began.set()
            body()

        threading.Thread(target=run, daemon=True).start()
        assert self._began.wait(5)


def illness_after(vitals: Vitals, seconds: float) -> str:
    """What is found when it is looked for `seconds`, a look a second; the clock is the test's."""
    begun, found = time.monotonic(), ""
    for second in range(int(seconds) + 1):
        found = found or vitals.illness(begun + second)
    return found


def test_all_is_well_of_a_control_plane_that_turns(vitals: Vitals) -> None:
    vitals.look(time.monotonic())
    assert set(vitals.parts(time.monotonic()).values()) == {"ok"}
    assert illness_after(vitals, 60) == ""


def test_a_loop_that_stands_still_is_told_and_then_is_illness(vitals: Vitals) -> None:
    release = threading.Event()
    Thread(vitals, release.wait)
    assert vitals.parts(time.monotonic() + 5)["loops"] == "essential late"
    assert illness_after(vitals, STUCK_S - 1) == ""
    assert "essential has stood still" in illness_after(vitals, STUCK_S + STILL_S)
    release.set()


def test_a_loop_that_takes_long_and_runs_is_late_and_not_ill(vitals: Vitals) -> None:
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            time.sleep(0.001)

    Thread(vitals, work)
    begun = time.monotonic()
    for second in range(30):
        time.sleep(0.05)
        assert vitals.illness(begun + second) == ""
    ended.set()


def test_a_loop_that_is_not_essential_may_stand_still(vitals: Vitals) -> None:
    release = threading.Event()
    Thread(vitals, release.wait, "builder")
    assert vitals.parts(time.monotonic() + 60)["loops"] == "ok" and illness_after(vitals, 60) == ""
    release.set()


def test_a_database_that_somebody_never_gives_back_is_illness(vitals: Vitals, store: Store) -> None:
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        with store._write():
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(5)
    looking = threading.Thread(target=vitals.look, args=(time.monotonic(),))
    looking.start()
    while vitals._looking_since is None:
        time.sleep(0.01)
    assert "has not answered" in vitals.parts(time.monotonic() + 5)["database"]
    assert "held" in illness_after(vitals, STUCK_S + STILL_S)
    release.set()
    holder.join()
    looking.join()
    vitals.look(time.monotonic())
    assert vitals.parts(time.monotonic())["database"] == "ok" and illness_after(vitals, 60) == ""


def test_a_database_that_another_process_holds_is_told_and_is_no_illness(vitals: Vitals, home: Home) -> None:
    other = sqlite3.connect(home.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    looking = threading.Thread(target=vitals.look, args=(time.monotonic(),))
    looking.start()
    begun = time.monotonic()
    for second in range(30):  # thirty seconds of the test's clock while the other one waits for two
        time.sleep(0.1)
        assert vitals.illness(begun + second) == ""
    other.rollback()
    other.close()
    looking.join()
    vitals.look(time.monotonic())
    assert vitals.parts(time.monotonic())["database"] == "ok"


def test_a_database_that_cannot_be_written_says_so(vitals: Vitals, store: Store) -> None:
    with store._write(routes=False) as connection:
        connection.exec_driver_sql("DROP TABLE counters")
    vitals.look(time.monotonic())
    assert "no such table" in vitals.parts(time.monotonic())["database"]
    assert illness_after(vitals, 60) == ""


def test_no_thread_for_handlers_is_told(vitals: Vitals) -> None:
    now = time.monotonic()
    assert vitals.handlers_asked(now) and not vitals.handlers_asked(now + 1)
    assert "none has been free" in vitals.parts(now + 5)["handlers"]
    vitals.handlers_answered()
    assert vitals.parts(now + 5)["handlers"] == "ok" and vitals.handlers_asked(now + 6)


def test_a_control_socket_that_is_not_there_and_gateways_that_are_silent_are_told(vitals: Vitals, home: Home) -> None:
    home.control_socket.unlink()
    parts = vitals.parts(time.monotonic() + 60)
    assert parts["sockets"] == "the control socket was deleted" and parts["gateways"] == "none has reported lately"


def test_where_the_kernel_does_not_tell_who_runs_nobody_stands_still(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    stillness = Stillness(tmp_path)
    stillness.look(0.0)
    stillness.look(100.0)
    assert stillness.still_s(1, 100.0) == 0.0

"""The table of calls: order, cancelling, deadlines, draining; without processes."""

from __future__ import annotations

import threading
import time

from puna.worker.call_table import MIN_QUEUE, CallTable, WorkerCall


class Desk:
    """A table whose watcher runs, and everything that was sent or told."""

    def __init__(self, threads: int = 1, grace_s: float = 0.05) -> None:
        self.sent: list[bytes] = []
        self.late: list[int] = []
        self.poisoned: list[int] = []
        self.refused: list[int] = []
        self.came = threading.Event()
        self.calls = CallTable(threads, lambda call: self.late.append(call.request_id), self._poisoned, self._refused)
        self.calls.overrun_grace_s = grace_s
        threading.Thread(target=self.calls.watch, daemon=True).start()

    def _refused(self, call: WorkerCall) -> None:
        self.refused.append(call.request_id)

    def _poisoned(self, call: WorkerCall) -> None:
        self.poisoned.append(call.request_id)
        self.came.set()

    def call(self, request_id: int, within_s: float = 60, connection: int = 1, **head: object) -> WorkerCall:
        return WorkerCall((connection, request_id), head, b"", time.monotonic() + within_s, self.sent.append)

    def add(self, request_id: int, within_s: float = 60, connection: int = 1) -> str:
        return self.calls.add(self.call(request_id, within_s, connection))

    def run(self) -> int:
        """Take the next call and finish it."""
        call = self.calls.take()
        assert call is not None
        self.finish(call)
        return call.request_id

    def finish(self, call: WorkerCall) -> None:
        """Close a call and send what is to be sent."""
        call.send(self.calls.close(call, b"reply", b"over"))
        self.calls.sent(1)


def until(is_so: object) -> None:
    end = time.monotonic() + 5
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_calls_run_in_order_and_an_id_is_free_again_at_once() -> None:
    desk = Desk()
    assert [desk.add(n) for n in (3, 1, 2)] == ["", "", ""]
    assert [desk.run() for _ in range(3)] == [3, 1, 2] and desk.sent == [b"reply"] * 3
    assert desk.add(3) == ""
    assert "in use" in desk.add(3)


def test_what_replicas_may_die_of_runs_alone_for_its_time_whoever_else_asks() -> None:
    desk = Desk(threads=3)
    assert desk.add(1) == "" and desk.add(2) == ""
    first = desk.calls.take()
    assert first is not None and first.request_id == 1
    assert desk.calls.add(desk.call(3, connection=2, alone_s=0.1)) == ""
    assert "alone" in desk.add(4) and "alone" in desk.calls.add(desk.call(5, alone_s=9))
    second = desk.calls.take()
    assert second is not None and second.request_id == 2, "who was here before it goes first"
    assert not desk.calls.has_more, "others still run"
    taken: list[WorkerCall | None] = []
    waiter = threading.Thread(target=lambda: taken.append(desk.calls.take()))
    waiter.start()
    desk.finish(first)
    time.sleep(0.05)
    assert taken == []
    desk.finish(second)
    waiter.join(5)
    assert [call.request_id for call in taken if call] == [3]
    assert taken[0] is not None and "alone" in desk.add(6)
    time.sleep(0.15)
    assert "alone" in desk.add(6), "its time begins when it does"
    desk.calls.begins_alone(taken[0])
    assert "alone" in desk.add(6)
    until(lambda: desk.add(6) == "")


def test_a_place_of_ones_own_is_given_back_by_who_leaves_it_or_never_took_it() -> None:
    desk = Desk()
    desk.calls.add(desk.call(1, alone_s=60))
    desk.calls.cancel((1, 1))
    assert desk.add(2) == ""
    desk.run()
    desk.calls.add(desk.call(3, alone_s=60))
    assert desk.run() == 3
    assert desk.add(4) == ""


def test_the_queue_is_bounded_and_cancelled_calls_take_no_place_in_it() -> None:
    desk = Desk()
    assert all(desk.add(n) == "" for n in range(MIN_QUEUE))
    assert "too many requests" in desk.add(999)
    desk.calls.cancel((1, 5))
    assert desk.add(999) == ""


def test_cancelling_drops_what_waits_and_hushes_what_runs() -> None:
    desk = Desk()
    for number in (1, 2, 3):
        desk.add(number, connection=number)
    running = desk.calls.take()
    assert running is not None
    cancelled = threading.Event()
    running.cancel = cancelled.set
    desk.calls.cancel((1, 1))
    desk.calls.cancel_connection(2)
    desk.calls.cancel((9, 9))
    desk.finish(running)
    assert desk.run() == 3 and desk.sent == [b"over", b"reply"] and cancelled.is_set()


def test_a_deadline_passes_for_what_waits_and_for_what_runs() -> None:
    desk = Desk(grace_s=5)
    desk.add(1, within_s=0.05)
    running = desk.calls.take()
    assert running is not None
    desk.add(2, within_s=0.02)
    desk.add(3)
    until(lambda: desk.late == [2, 1])
    desk.finish(running)
    assert desk.run() == 3 and desk.sent == [b"over", b"reply"] and desk.poisoned == []


def test_an_overrun_waits_for_the_others_and_then_poisons() -> None:
    desk = Desk(threads=2)
    desk.add(1, within_s=0.01)
    desk.add(2)
    desk.add(3)
    first, second = desk.calls.take(), desk.calls.take()
    assert first is not None and second is not None
    until(lambda: not desk.calls.accepts)
    assert desk.poisoned == [] and "restarts" in desk.add(4)
    until(lambda: desk.refused == [3])  # it would wait for a process that only ends
    desk.finish(second)
    assert desk.came.wait(5) and desk.poisoned[0] == 1 and desk.sent == [b"reply"]


def test_the_page_holds_the_latest_time_of_what_runs_and_nothing_when_nothing_does() -> None:
    desk = Desk(threads=2)
    desk.add(1, within_s=50)
    desk.add(2, within_s=20)
    assert list(desk.calls.until) == [0.0, 0.0]
    first, second = desk.calls.take(), desk.calls.take()
    assert first is not None and second is not None and desk.calls.until[0] == first.deadline
    desk.calls.hold_deadline(second)
    desk.calls.restart_deadline(second, 90)
    assert desk.calls.until[0] == second.deadline
    desk.finish(second)
    assert desk.calls.until[0] > 0
    desk.finish(first)
    assert list(desk.calls.until) == [0.0, 0.0]


def test_a_process_that_stood_still_past_the_time_of_a_call_gives_it_its_grace_from_there() -> None:
    desk = Desk(grace_s=0.5)
    call = desk.call(1, within_s=0.3)
    assert desk.calls.add(call) == "" and desk.calls.take() is call
    call.deadline -= 100  # as after a suspension
    until(lambda: desk.late == [1])
    assert desk.poisoned == [] and desk.came.wait(5)


def test_draining_refuses_and_tells_when_all_is_out() -> None:
    desk = Desk()
    desk.add(1)
    told: list[bytes] = []
    desk.calls.drain("closed", lambda: told.extend(desk.sent))
    assert desk.add(2) == "closed" and told == []
    desk.run()
    assert told == [b"reply"]  # after the reply, not before
    desk.calls.stop()
    assert desk.calls.take() is None


def test_one_that_overran_ends_the_process_only_when_what_others_are_told_has_gone_out() -> None:
    desk = Desk(threads=2)
    desk.add(1, within_s=0.05)
    desk.add(2)
    overruns, other = desk.calls.take(), desk.calls.take()
    assert overruns is not None and other is not None
    reply = desk.calls.close(other, b"reply", b"over")
    until(lambda: desk.late == [1])
    assert not desk.came.wait(0.3), "the process ended beside a reply that was being written"
    other.send(reply)
    desk.calls.sent(1)
    assert desk.came.wait(5) and desk.poisoned == [1] and desk.sent == [b"reply"]

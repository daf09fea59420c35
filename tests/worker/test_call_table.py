"""The table of calls: order, cancelling, deadlines, draining; without processes."""

from __future__ import annotations

import threading
import time

from puna.worker.call_table import MIN_QUEUE, CallTable, WorkerCall


class WatchedTable:
    """A table whose watcher runs, and everything that was sent or reported."""

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
    table = WatchedTable()
    assert [table.add(n) for n in (3, 1, 2)] == ["", "", ""]
    assert [table.run() for _ in range(3)] == [3, 1, 2] and table.sent == [b"reply"] * 3
    assert table.add(3) == ""
    assert "in use" in table.add(3)


def test_what_replicas_may_die_of_runs_alone_for_its_time_whoever_else_asks() -> None:
    table = WatchedTable(threads=3)
    assert table.add(1) == "" and table.add(2) == ""
    first = table.calls.take()
    assert first is not None and first.request_id == 1
    assert table.calls.add(table.call(3, connection=2, alone_s=0.1)) == ""
    assert "alone" in table.add(4) and "alone" in table.calls.add(table.call(5, alone_s=9))
    second = table.calls.take()
    assert second is not None and second.request_id == 2, "who was here before it goes first"
    assert not table.calls.has_more, "others still run"
    taken: list[WorkerCall | None] = []
    waiter = threading.Thread(target=lambda: taken.append(table.calls.take()))
    waiter.start()
    table.finish(first)
    time.sleep(0.05)
    assert taken == []
    table.finish(second)
    waiter.join(5)
    assert [call.request_id for call in taken if call] == [3]
    assert taken[0] is not None and "alone" in table.add(6)
    time.sleep(0.15)
    assert "alone" in table.add(6), "its time begins when it does"
    table.calls.begins_alone(taken[0])
    assert "alone" in table.add(6)
    until(lambda: table.add(6) == "")


def test_a_place_of_ones_own_is_given_back_by_who_leaves_it_or_never_took_it() -> None:
    table = WatchedTable()
    table.calls.add(table.call(1, alone_s=60))
    table.calls.cancel((1, 1))
    assert table.add(2) == ""
    table.run()
    table.calls.add(table.call(3, alone_s=60))
    assert table.run() == 3
    assert table.add(4) == ""


def test_the_queue_is_bounded_and_cancelled_calls_take_no_place_in_it() -> None:
    table = WatchedTable()
    assert all(table.add(n) == "" for n in range(MIN_QUEUE))
    assert "too many requests" in table.add(999)
    table.calls.cancel((1, 5))
    assert table.add(999) == ""


def test_cancelling_drops_what_waits_and_hushes_what_runs() -> None:
    table = WatchedTable()
    for number in (1, 2, 3):
        table.add(number, connection=number)
    running = table.calls.take()
    assert running is not None
    cancelled = threading.Event()
    running.cancel = cancelled.set
    table.calls.cancel((1, 1))
    table.calls.cancel_connection(2)
    table.calls.cancel((9, 9))
    table.finish(running)
    assert table.run() == 3 and table.sent == [b"over", b"reply"] and cancelled.is_set()


def test_a_deadline_passes_for_what_waits_and_for_what_runs() -> None:
    table = WatchedTable(grace_s=5)
    table.add(1, within_s=0.05)
    running = table.calls.take()
    assert running is not None
    table.add(2, within_s=0.02)
    table.add(3)
    until(lambda: table.late == [2, 1])
    table.finish(running)
    assert table.run() == 3 and table.sent == [b"over", b"reply"] and table.poisoned == []


def test_an_overrun_waits_for_the_others_and_then_poisons() -> None:
    table = WatchedTable(threads=2)
    table.add(1, within_s=0.01)
    table.add(2)
    table.add(3)
    first, second = table.calls.take(), table.calls.take()
    assert first is not None and second is not None
    until(lambda: not table.calls.accepts)
    assert table.poisoned == [] and "restarts" in table.add(4)
    until(lambda: table.refused == [3])  # it would wait for a process that only ends
    table.finish(second)
    assert table.came.wait(5) and table.poisoned[0] == 1 and table.sent == [b"reply"]


def test_the_page_holds_the_latest_time_of_what_runs_and_nothing_when_nothing_does() -> None:
    table = WatchedTable(threads=2)
    table.add(1, within_s=50)
    table.add(2, within_s=20)
    assert list(table.calls.until) == [0.0, 0.0]
    first, second = table.calls.take(), table.calls.take()
    assert first is not None and second is not None and table.calls.until[0] == first.deadline
    table.calls.hold_deadline(second)
    table.calls.restart_deadline(second, 90)
    assert table.calls.until[0] == second.deadline
    table.finish(second)
    assert table.calls.until[0] > 0
    table.finish(first)
    assert list(table.calls.until) == [0.0, 0.0]


def test_a_process_that_stood_still_past_the_time_of_a_call_gives_it_its_grace_from_there() -> None:
    table = WatchedTable(grace_s=0.5)
    call = table.call(1, within_s=0.3)
    assert table.calls.add(call) == "" and table.calls.take() is call
    call.deadline -= 100  # as after a suspension
    until(lambda: table.late == [1])
    assert table.poisoned == [] and table.came.wait(5)


def test_draining_refuses_and_tells_when_all_is_out() -> None:
    table = WatchedTable()
    table.add(1)
    told: list[bytes] = []
    table.calls.drain("closed", lambda: told.extend(table.sent))
    assert table.add(2) == "closed" and told == []
    table.run()
    assert told == [b"reply"]  # after the reply, not before
    table.calls.stop()
    assert table.calls.take() is None


def test_one_that_overran_ends_the_process_only_when_what_others_are_told_has_gone_out() -> None:
    table = WatchedTable(threads=2)
    table.add(1, within_s=0.05)
    table.add(2)
    overruns, other = table.calls.take(), table.calls.take()
    assert overruns is not None and other is not None
    reply = table.calls.close(other, b"reply", b"over")
    until(lambda: table.late == [1])
    assert not table.came.wait(0.3), "the process ended beside a reply that was being written"
    other.send(reply)
    table.calls.sent(1)
    assert table.came.wait(5) and table.poisoned == [1] and table.sent == [b"reply"]


def test_a_worker_is_idle_when_nothing_waits_or_runs_and_it_accepts_more() -> None:
    table = WatchedTable()
    assert table.calls.is_idle is True
    table.add(1)
    assert not table.calls.is_idle, "one waits"
    call = table.calls.take()
    assert call is not None and not table.calls.is_idle, "one runs"
    table.finish(call)
    assert table.calls.is_idle
    table.calls.drain("closed", lambda: None)
    assert not table.calls.is_idle


def test_giving_up_refuses_what_waits_lets_what_runs_end_and_reports_then() -> None:
    table = WatchedTable()
    table.add(1)
    table.add(2)
    running, ended = table.calls.take(), threading.Event()
    assert running is not None
    table.calls.give_up("the engine died", ended.set)
    assert table.refused == [2] and not ended.is_set() and table.add(3) == "the engine died"
    assert not table.calls.has_more
    table.finish(running)
    assert ended.is_set() and table.sent == [b"reply"]


def test_the_calls_that_lack_a_thread_are_those_beyond_the_threads_that_wait() -> None:
    table = WatchedTable(threads=3)
    waiter = threading.Thread(target=table.run)
    waiter.start()
    until(lambda: table.calls._idle == 1)
    assert table.calls.lacking() == 0
    table.add(1)
    waiter.join(5)
    table.add(2)
    table.add(3)
    assert table.calls.lacking() == 2


def test_a_call_is_answered_once_at_its_deadline_and_later_deadlines_are_kept() -> None:
    table = WatchedTable(grace_s=60)
    for number, within_s in ((1, 0.02), (2, 0.2), (3, 0.4)):
        table.add(number, within_s=within_s)
    assert table.calls.take() is not None  # it goes on past its time
    until(lambda: len(table.late) == 3)
    time.sleep(0.1)
    assert table.late == [1, 2, 3]


def test_a_call_whose_time_begins_anew_is_answered_at_its_new_deadline() -> None:
    table = WatchedTable(grace_s=60)
    table.add(1)
    call = table.calls.take()
    assert call is not None
    until(lambda: table.calls._wake_at == call.deadline)  # the watcher sleeps until then
    table.calls.hold_deadline(call)
    table.calls.restart_deadline(call, 0.05)
    until(lambda: table.late == [1])


def test_nothing_changes_the_table_while_another_thread_does() -> None:
    table = WatchedTable()
    table.calls.add(table.call(1, alone_s=1.0))
    call = table.calls.take()
    assert call is not None
    other = table.call(2)
    for change in (
        lambda: table.calls.begins_alone(call),
        lambda: table.calls.hold_deadline(call),
        lambda: table.calls.restart_deadline(call, 60),
        lambda: table.calls.add(other),
        lambda: table.calls.cancel((9, 9)),
        lambda: table.calls.lacking(),
        lambda: table.calls.close(call, b"reply", b"over"),
        lambda: table.calls.sent(1),
    ):
        with table.calls._lock:
            thread = threading.Thread(target=change)
            thread.start()
            thread.join(0.03)
            assert thread.is_alive(), "it did not wait for the lock"
        thread.join(5)
        assert not thread.is_alive()

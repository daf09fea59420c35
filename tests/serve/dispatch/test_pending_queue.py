"""The queue of one endpoint: order, turns among keys, bound, time limit."""

import random
from collections import Counter, deque

import pytest

from puna.errors import QueueFullError
from puna.serve.dispatch.pending_queue import PendingQueue, Waiter


def enter(
    room: PendingQueue, now: float, *, cold: bool = False, tried: tuple[str, ...] = (), key: str = "", most: int = 3
) -> Waiter:
    return room.enter(now, lambda error: None, cold=cold, max_queue=most, tried=tried, key=key)


def granted(room: PendingQueue) -> str:
    """Serve one: the key whose turn it was."""
    waiter = room.first()
    assert waiter is not None
    room.grant(waiter, "a place")
    assert waiter.granted == "a place"
    return waiter.key


def test_the_first_to_come_stands_first_in_line() -> None:
    room = PendingQueue("e")
    waiters = [enter(room, now) for now in (1, 2, 3)]
    assert list(room) == waiters


def test_a_full_room_refuses_and_says_when_to_come_back() -> None:
    room = PendingQueue("e")
    for now in range(3):
        enter(room, now)
    with pytest.raises(QueueFullError, match="3 requests wait for e already") as caught:
        enter(room, 3)
    assert caught.value.retry_after_s >= 1


def test_a_place_given_up_is_free_again_and_cannot_be_given_up_twice() -> None:
    room = PendingQueue("e")
    first, second = enter(room, 1), enter(room, 2)
    assert room.leave(first)
    assert not room.leave(first)
    assert list(room) == [second]


def test_a_request_whose_replica_died_goes_to_the_front_even_of_a_full_room() -> None:
    room = PendingQueue("e")
    others = [enter(room, now) for now in range(3)]
    again = enter(room, 4, tried=("a",))
    assert list(room) == [again, *others]


def test_at_an_awake_endpoint_a_request_waits_as_long_as_one_inference_may_take() -> None:
    room = PendingQueue("e", startup_allowance_s=900)
    waiter = enter(room, 100)
    assert room.expired(129.9, inference_time_s=30) == []
    assert room.expired(130, inference_time_s=30) == [waiter]


def test_a_cold_wait_has_the_startup_allowance_on_top() -> None:
    room = PendingQueue("e", startup_allowance_s=900)
    waiter = enter(room, 100, cold=True)
    assert room.expired(1029.9, inference_time_s=30) == []
    assert room.expired(1030, inference_time_s=30) == [waiter]


def test_losing_the_last_replica_turns_every_wait_into_a_cold_one() -> None:
    room = PendingQueue("e", startup_allowance_s=900)
    enter(room, 100)
    room.turned_cold()
    assert room.expired(131, inference_time_s=30) == []


# ---- turns among keys ---------------------------------------------------------------------------------------------


def test_keys_take_turns_and_each_keys_own_requests_go_in_their_order() -> None:
    room = PendingQueue("e")
    waiters = {
        name: enter(room, now, key=name[0], most=9) for now, name in enumerate(["a1", "a2", "a3", "b1", "c1", "b2"])
    }
    order = [waiters[name] for name in ("a1", "b1", "c1", "a2", "b2", "a3")]
    assert list(room) == order
    assert [granted(room) for _ in range(6)] == [waiter.key for waiter in order]
    assert room.first() is None and len(room) == 0


def test_a_key_with_one_loop_waits_for_one_call_of_a_key_with_a_hundred_and_fifty() -> None:
    room, refused = PendingQueue("e"), Counter[str]()

    def come(key: str) -> None:
        try:
            room.enter(0, lambda error: refused.update([key] if error else []), cold=False, max_queue=100, key=key)
        except QueueFullError:
            refused[key] += 1

    for _ in range(150):
        come("a")
    waits = []
    for _ in range(21):
        come("b")
        waits.append(0)
        while granted(room) != "b":  # who is served comes back at once
            waits[-1] += 1
            come("a")
    assert max(waits) <= 1
    assert refused["b"] == 0 and refused["a"] >= 50


def test_in_a_full_room_the_newest_of_the_key_with_the_most_gives_its_place_and_hears_why() -> None:
    room, heard = PendingQueue("e"), []
    for number in range(3):
        room.enter(0, lambda error, n=number: heard.append((n, error)), cold=False, max_queue=3, key="a")  # type: ignore[misc]
    mine = enter(room, 1, key="b")
    (number, error), *more = heard
    assert (number, more) == (2, []) and isinstance(error, QueueFullError) and error.retry_after_s == 1
    assert mine in list(room) and len(room) == 3


def test_a_key_that_would_have_as_many_as_the_longest_is_refused_itself() -> None:
    room = PendingQueue("e")
    for key in ("a", "a", "b"):
        enter(room, 0, key=key)
    with pytest.raises(QueueFullError):
        enter(room, 1, key="b")
    with pytest.raises(QueueFullError):
        enter(room, 1, key="a")
    enter(room, 1, key="c")
    with pytest.raises(QueueFullError):
        enter(room, 1, key="d")
    assert sorted(waiter.key for waiter in room) == ["a", "b", "c"]


class Model:
    """What a pending queue is to do, said in the simplest way and slowly."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.front: list[int] = []
        self.lines: deque[tuple[str, list[int]]] = deque()

    def all(self) -> list[int]:
        depth = max((len(line) for _, line in self.lines), default=0)
        turns = [line[n] for n in range(depth) for _, line in self.lines if n < len(line)]
        return self.front + turns

    def enter(self, number: int, key: str) -> int | None:
        """Who is refused for it."""
        lines, out = dict(self.lines), None
        if len(self.all()) >= self.most:
            most = max((len(line) for line in lines.values()), default=0)
            if len(lines.get(key, ())) + 1 >= most:
                return number
            longest = [(k, line) for k, line in lines.items() if len(line) == most]
            out = -1  # which of several equal ones is nobody's business
            self.candidates = {line[-1] for _, line in longest}
        if key not in lines:
            self.lines.append((key, [number]))
        else:
            lines[key].append(number)
        return out

    def leave(self, number: int) -> None:
        self.front = [n for n in self.front if n != number]
        for _, line in self.lines:
            if number in line:
                line.remove(number)
        self.lines = deque((key, line) for key, line in self.lines if line)

    def grant(self) -> int:
        if self.front:
            return self.front.pop(0)
        key, line = self.lines.popleft()
        number = line.pop(0)
        if line:
            self.lines.append((key, line))
        return number


@pytest.mark.parametrize("seed", range(40))
def test_on_random_walks_the_room_is_what_a_slow_and_simple_model_says(seed: int) -> None:
    chance = random.Random(seed)
    most = chance.choice([1, 3, 8, 20])
    room, model, waiters = PendingQueue("e"), Model(most), {}
    refused: list[int] = []
    for number in range(400):
        what = chance.random()
        if what < 0.6:
            key = chance.choice("aaaaabbc") if seed % 2 else chance.choice("abcdefgh")
            refused.clear()
            expected = model.enter(number, key)
            try:
                waiters[number] = room.enter(
                    0, lambda error, n=number: refused.append(n), cold=False, max_queue=most, key=key
                )
            except QueueFullError:
                refused.append(number)
            if expected == -1:
                assert len(refused) == 1 and refused[0] in model.candidates
                model.leave(refused[0])
            else:
                assert refused == ([] if expected is None else [expected])
        elif what < 0.65:
            waiters[number] = room.enter(0, lambda error: None, cold=False, max_queue=most, tried=("r",), key="z")
            model.front.insert(0, number)
        elif what < 0.8 and waiters:
            gone = chance.choice(list(waiters))
            assert room.leave(waiters[gone]) == (gone in model.all())
            model.leave(gone)
        elif (first := room.first()) is not None:
            assert first is waiters[model.grant()]
            room.grant(first, "a place")
        assert [waiter.number for waiter in room] == [waiters[n].number for n in model.all()]
        assert len(room) == len(model.all())

"""The queue of one endpoint: order, bound, time limit."""

import pytest

from puna.errors import QueueFullError
from puna.serve.waiting_room import Ticket, WaitingRoom


def enter(room: WaitingRoom, now: float, *, cold: bool = False, tried: tuple[str, ...] = ()) -> Ticket:
    return room.enter(now, lambda error: None, cold=cold, max_queue=3, tried=tried)


def test_the_first_to_come_stands_first_in_line() -> None:
    room = WaitingRoom("e")
    tickets = [enter(room, now) for now in (1, 2, 3)]
    assert list(room) == tickets


def test_a_full_room_refuses_and_says_when_to_come_back() -> None:
    room = WaitingRoom("e")
    for now in range(3):
        enter(room, now)
    with pytest.raises(QueueFullError, match="3 requests wait for e already") as caught:
        enter(room, 3)
    assert caught.value.retry_after_s >= 1


def test_a_place_given_up_is_free_again_and_cannot_be_given_up_twice() -> None:
    room = WaitingRoom("e")
    first, second = enter(room, 1), enter(room, 2)
    assert room.leave(first)
    assert not room.leave(first)
    assert list(room) == [second]


def test_a_request_whose_replica_died_goes_to_the_front_even_of_a_full_room() -> None:
    room = WaitingRoom("e")
    others = [enter(room, now) for now in range(3)]
    again = enter(room, 4, tried=("a",))
    assert list(room) == [again, *others]


def test_at_an_awake_endpoint_a_request_waits_as_long_as_one_inference_may_take() -> None:
    room = WaitingRoom("e", startup_allowance_s=900)
    ticket = enter(room, 100)
    assert room.expired(129.9, inference_time_s=30) == []
    assert room.expired(130, inference_time_s=30) == [ticket]


def test_a_cold_wait_has_the_startup_allowance_on_top() -> None:
    room = WaitingRoom("e", startup_allowance_s=900)
    ticket = enter(room, 100, cold=True)
    assert room.expired(1029.9, inference_time_s=30) == []
    assert room.expired(1030, inference_time_s=30) == [ticket]


def test_losing_the_last_replica_turns_every_wait_into_a_cold_one() -> None:
    room = WaitingRoom("e", startup_allowance_s=900)
    enter(room, 100)
    room.turned_cold()
    assert room.expired(131, inference_time_s=30) == []

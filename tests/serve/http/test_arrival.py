"""When what a client owes is late, and how dispensable it is; time is an argument."""

from puna.serve.http.arrival import BODY_GRACE_S, OVERHEAD, Arrival, ArrivalLimits, Awaited

LIMITS = ArrivalLimits(head_s=10, body_s=30, body_bytes_s=1000, overhead_bytes=100)
KEEP_S = 620.0


def late(arrival: Arrival, now: float) -> bool:
    return arrival.is_late(now, LIMITS, KEEP_S)


def test_the_first_head_is_awaited_from_the_moment_of_connecting_later_ones_for_as_long_as_connections_are_kept() -> (
    None
):
    arrival = Arrival(100.0)
    assert not late(arrival, 109.9) and late(arrival, 110.0)
    arrival.is_first = False
    assert not late(arrival, 100 + KEEP_S - 0.1) and late(arrival, 100 + KEEP_S)


def test_a_byte_now_and_then_buys_a_head_no_time() -> None:
    arrival = Arrival(100.0)
    arrival.awaited, arrival.moved = Awaited.HEAD, 109.9
    assert late(arrival, 110.0)


def test_a_body_has_its_time_and_more_for_what_came_but_may_not_fall_silent() -> None:
    arrival = Arrival(0.0)
    arrival.awaited, arrival.moved = Awaited.BODY, 29.9
    arrival.body_bytes = 10
    assert not late(arrival, 30.0) and late(arrival, 30.1), "ten bytes buy ten milliseconds"
    arrival.body_bytes = 50_000
    assert not late(arrival, 59.8)
    assert late(arrival, 59.9), "silent for 30 s"
    arrival.moved = 79.9
    assert late(arrival, 80.0), "slower than 1,000 bytes a second"


def test_what_we_asked_the_client_to_wait_for_does_not_count() -> None:
    arrival = Arrival(0.0)
    arrival.awaited = Awaited.BODY
    arrival.held_back(5.0)
    assert not late(arrival, 34.9) and late(arrival, 35.0)


def test_framing_may_cost_what_chunks_of_one_byte_cost_and_no_more() -> None:
    arrival = Arrival(0.0)
    arrival.came_bytes, arrival.body_bytes = 6_000, 1_000
    assert not arrival.is_padded(LIMITS)
    arrival.came_bytes = 1_000 + 100 + OVERHEAD * 1_000 + 1
    assert arrival.is_padded(LIMITS)


def test_silent_ones_go_before_those_between_two_requests_and_those_before_slow_bodies() -> None:
    silent, between, slow = Arrival(50.0), Arrival(10.0), Arrival(0.0)
    between.is_first = slow.is_first = False
    slow.awaited = Awaited.BODY
    now = 60.0
    order = sorted([silent, between, slow], key=lambda arrival: arrival.waiting(now) or (9, 0.0))
    assert order == [silent, between, slow]
    assert slow.waiting(BODY_GRACE_S / 2) is None, "a body that has just begun to come is left alone"

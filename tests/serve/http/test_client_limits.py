"""When what a client owes is late, and how dispensable it is; time is an argument."""

from __future__ import annotations

import pytest

from puna.serve.http.client_limits import (
    BODY_GRACE_S,
    LOCAL,
    OVERHEAD,
    Arrival,
    ArrivalLimits,
    Awaited,
    ClientLimits,
    Clients,
    Unread,
    is_own,
)

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


class Stub:
    """A client that waits since some moment, or is busy."""

    def __init__(self, everybody: set[Stub], address: str, since: float | None) -> None:
        self.address, self.since, self.everybody = address, since, everybody
        everybody.add(self)

    def waiting(self, now: float) -> tuple[int, float] | None:
        return None if self.since is None else (0, self.since)

    def hang_up(self) -> None:
        self.everybody.discard(self)


def filled(clients: Clients, everybody: set[Stub], *whom: tuple[str, float | None]) -> list[Stub]:
    """Let them in."""
    for address, _ in whom:
        assert clients.has_room(0.0) and clients.admit(address, 0.0)
    return [Stub(everybody, *who) for who in whom]


def test_the_one_that_has_waited_longest_goes_first_and_nobody_who_is_being_answered() -> None:
    everybody: set[Stub] = set()
    clients = Clients(ClientLimits(most=3), everybody)
    young, old, busy = filled(clients, everybody, ("a", 5.0), ("b", 1.0), ("c", None))
    assert clients.has_room(9.0)
    assert everybody == {young, busy} and old not in everybody
    clients.left("b")
    young.since = None
    filled(clients, everybody, ("d", None))
    assert not clients.has_room(9.0), "all are being answered"


def test_of_those_who_do_not_read_the_longest_stuck_is_hung_up_on_and_what_is_read_counts_no_more() -> None:
    everybody: set[Stub] = set()
    unread = Unread(100)
    first, second, third = (Stub(everybody, address, 0.0) for address in ("a", "b", "c"))
    unread.remove(first)
    assert unread.bytes == 0, "nothing was waiting for it"
    unread.add(first, 60)
    unread.add(second, 40)
    unread.add(first, 50)
    assert unread.bytes == 90 and len(everybody) == 3
    unread.add(third, 60)
    assert everybody == {third} and unread.bytes == 60, "the first one began to wait anew, and later than the second"
    unread.add(third, 900)
    assert everybody == {third}, "the only one may have as much as it likes"
    unread.remove(third)
    unread.remove(third)
    assert unread.bytes == 0


def test_one_address_gets_no_more_than_its_share_and_loses_its_own_idle_ones_first() -> None:
    everybody: set[Stub] = set()
    clients = Clients(ClientLimits(most=100, per_address=2), everybody)
    first, second, other = filled(clients, everybody, ("10.0.0.1", 1.0), ("10.0.0.1", None), ("10.0.0.2", 0.0))
    assert clients.admit("10.0.0.1", 9.0)
    assert first not in everybody and other in everybody, "another address's idle ones are left alone"
    clients.left("10.0.0.1")
    assert not clients.admit("10.0.0.1", 9.0) and clients.admit("10.0.0.2", 9.0)
    clients.left("10.0.0.1")
    assert clients.admit("10.0.0.1", 9.0) and second in everybody


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", LOCAL])
def test_from_this_machine_a_proxy_may_bring_everybody(address: str) -> None:
    assert is_own(address)
    clients = Clients(ClientLimits(most=100, per_address=1), set())
    assert all(clients.admit(address, 0.0) for _ in range(50))


@pytest.mark.parametrize("address", ["10.0.0.1", "fe80::1%eth0", "::ffff:10.0.0.1", "8.8.8.8"])
def test_other_addresses_are_others(address: str) -> None:
    assert not is_own(address)

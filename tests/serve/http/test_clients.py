"""Who may connect, and who is hung up on for whom; connections are made of their answers here."""

from __future__ import annotations

import pytest

from puna.serve.http.clients import LOCAL, ClientLimits, Clients, is_own


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

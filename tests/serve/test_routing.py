"""Which replica is chosen."""

from dataclasses import dataclass

from puna.serve.routing import choose


@dataclass
class Replica:
    replica_id: str
    outstanding: int
    places: int = 4
    usable: bool = True


def test_the_least_loaded_replica_takes_the_request() -> None:
    chosen = choose([Replica("a", 3), Replica("b", 1), Replica("c", 2)])
    assert chosen is not None and chosen.replica_id == "b"


def test_full_unusable_and_tried_replicas_are_passed_over() -> None:
    full, gone, tried = Replica("full", 4), Replica("gone", 0, usable=False), Replica("tried", 0)
    assert choose([full, gone, tried], tried={"tried"}) is None
    left = choose([full, gone, tried, Replica("left", 3)], tried={"tried"})
    assert left is not None and left.replica_id == "left"

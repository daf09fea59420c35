"""Which replica is chosen."""

from dataclasses import dataclass

from puna.serve.dispatch.routing import EVEN, PREFIX_BYTES, Affinity, beginnings, choose


@dataclass
class Replica:
    replica_id: str
    outstanding: int
    places: int = 4
    usable: bool = True
    asleep: bool = False


def name(chosen: Replica | None) -> str:
    return chosen.replica_id if chosen else ""


def test_the_least_loaded_replica_takes_the_request() -> None:
    assert name(choose([Replica("a", 3), Replica("b", 1), Replica("c", 2)])) == "b"


def test_full_unusable_and_tried_replicas_are_passed_over() -> None:
    full, gone, tried = Replica("full", 4), Replica("gone", 0, usable=False), Replica("tried", 0)
    assert choose([full, gone, tried], tried={"tried"}) is None
    assert name(choose([full, gone, tried, Replica("left", 3)], tried={"tried"})) == "left"


def test_one_that_sleeps_is_woken_only_when_none_that_is_awake_has_a_place() -> None:
    sleeper = Replica("sleeper", 0, asleep=True)
    assert name(choose([sleeper, Replica("busy", 3)])) == "busy"
    assert name(choose([sleeper, Replica("full", 4)])) == "sleeper"


def test_only_one_of_those_that_sleep_is_woken_and_the_rest_wait_once_it_is_full() -> None:
    sleepers = [Replica(id, 0, places=3, asleep=True) for id in "abc"]
    chosen = []
    while (one := choose(sleepers)) is not None:
        chosen.append(one.replica_id)
        one.outstanding += 1
    assert chosen == ["a", "a", "a"]
    assert name(choose(sleepers, tried={"a"})) == "b", "who lost it may wake another"


# -- affinity

LONG = b"You are a helpful assistant. " * 200


def test_a_body_has_a_beginning_for_each_length_that_it_reaches_and_a_common_start_is_a_common_beginning() -> None:
    assert beginnings(b"short") == ()
    assert len(beginnings(LONG)) == len(PREFIX_BYTES)
    same_start, other = beginnings(LONG[:1000] + b"!" * 5000), beginnings(b"!" + LONG)
    assert same_start[-1] == beginnings(LONG)[-1] and same_start[0] != beginnings(LONG)[0]
    assert not set(other) & set(beginnings(LONG))


def test_while_the_load_is_even_a_body_goes_where_its_beginning_was_served() -> None:
    affinity, a, b = Affinity(), Replica("a", 0, places=16), Replica("b", 0, places=16)
    assert name(affinity.choose([a, b], beginnings(LONG))) == "a", "nobody knows it: the least loaded"
    affinity.served(beginnings(LONG), "b")
    assert name(affinity.choose([a, b], beginnings(LONG))) == "b"
    b.outstanding = EVEN
    assert name(affinity.choose([a, b], beginnings(LONG))) == "b"
    assert name(affinity.choose([a, b], beginnings(b"another" + LONG))) == "a"
    assert name(affinity.choose([a, b], ())) == "a", "short bodies go to the least loaded"


def test_while_the_load_is_uneven_or_the_replica_half_full_the_beginning_does_not_count() -> None:
    affinity, a, b = Affinity(), Replica("a", 0, places=16), Replica("b", EVEN + 1, places=16)
    affinity.served(beginnings(LONG), "b")
    assert name(affinity.choose([a, b], beginnings(LONG))) == "a"
    a.outstanding, b.outstanding = 7, 8
    assert name(affinity.choose([a, b], beginnings(LONG))) == "a"
    b.outstanding = 7
    assert name(affinity.choose([a, b], beginnings(LONG))) == "b"


def test_the_longest_known_beginning_decides() -> None:
    affinity, a, b = Affinity(), Replica("a", 0), Replica("b", 0)
    affinity.served(beginnings(LONG), "b")
    affinity.served(beginnings(LONG[:300] + b"!" * 5000), "a")  # the newest of the shortest beginning
    assert name(affinity.choose([a, b], beginnings(LONG))) == "b"
    assert name(affinity.choose([b, a], beginnings(LONG[:300] + b"?" * 5000))) == "a"


def test_a_replica_that_is_gone_asleep_or_tried_is_not_chosen_for_what_it_knew() -> None:
    affinity, a, b = Affinity(), Replica("a", 1), Replica("b", 0)
    affinity.served(beginnings(LONG), "b")
    assert name(affinity.choose([a], beginnings(LONG))) == "a"
    assert name(affinity.choose([a, Replica("b", 0, usable=False)], beginnings(LONG))) == "a"
    assert name(affinity.choose([a, Replica("b", 0, asleep=True)], beginnings(LONG))) == "a"
    assert name(affinity.choose([a, b], beginnings(LONG), tried={"b"})) == "a"


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    affinity, a, b = Affinity(remembered=30), Replica("a", 0), Replica("b", 0)
    affinity.served(beginnings(b"popular" + LONG), "b")
    for n in range(100):
        affinity.served(beginnings(b"%d" % n + LONG), "b")
        affinity.served(beginnings(b"popular" + LONG), "b")
        assert len(affinity) <= 30
    assert name(affinity.choose([a, b], beginnings(b"popular" + LONG))) == "b"
    assert name(affinity.choose([a, b], beginnings(b"0" + LONG))) == "a"

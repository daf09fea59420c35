"""Which build begins next."""

from __future__ import annotations

from puna.control.domain.records import Build, Step
from puna.control.domain.states import BuildState, StepState
from puna.control.operations.turns import Slots, next_build, subject

STEPS = ("environment", "bundle", "validate")


def build(name: str, created: float = 1.0, *, owner: str = "", done: int = 0, kind: str = "revision") -> Build:
    """A build whose first `done` steps have ended."""
    steps = tuple(Step(step, StepState.DONE if i < done else StepState.PENDING) for i, step in enumerate(STEPS))
    return Build(f"{name}-{created}", kind, name, 1, BuildState.QUEUED, created, steps, owner=owner)


def chosen(queued: list[Build], running: list[Build], slots: Slots = Slots(building=2), **more: dict[str, str]) -> str:
    found = next_build(queued, running, slots, more.get("digests", {}), {})
    return found.id if found is not None else ""


def test_the_one_that_waits_longest_begins_unless_all_slots_are_taken() -> None:
    waiting = [build("b", 2.0), build("a", 1.0)]
    assert chosen(waiting, []) == "a-1.0"
    assert chosen(waiting, [build("c")]) == "a-1.0"
    assert chosen(waiting, [build("c"), build("d")]) == ""


def test_of_one_endpoint_one_is_built_at_a_time() -> None:
    waiting = [build("a", 1.0), build("b", 2.0)]
    assert chosen(waiting, [build("a", 0.5)]) == "b-2.0"
    assert chosen([build("a", 1.0)], [build("a", 0.5, kind="runtime")]) == "a-1.0"  # a runtime of that name is another


def test_an_app_that_is_tried_holds_no_slot_of_those_that_are_built() -> None:
    hanging = [build(f"h{number}", done=2) for number in range(8)]
    assert chosen([build("a")], hanging) == "a-1.0"
    assert chosen([build("a")], [*hanging, build("x"), build("y")]) == ""


def test_an_environment_is_built_once_while_others_wait_for_it_outside_the_slots() -> None:
    waiting, running = [build("a", 1.0), build("b", 2.0)], [build("c", 0.5)]
    digests = {"a-1.0": "same", "c-0.5": "same", "b-2.0": "other"}
    assert chosen(waiting, running, digests=digests) == "b-2.0"
    assert chosen(waiting, [build("c", 0.5, done=1)], digests=digests) == "a-1.0"  # it is there


def test_a_key_that_holds_nothing_finds_a_place_when_another_key_holds_all() -> None:
    running = [build("x", owner="a"), build("y", owner="a")]
    assert chosen([build("z", owner="a")], running) == ""
    assert chosen([build("z", owner="a"), build("m", 2.0, owner="b")], running) == "m-2.0"
    crowd = [build(f"e{number}", owner=f"k{number}") for number in range(4)]
    assert chosen([build("m", owner="b")], crowd) == "", "guests are few: a machine has only so many cores"


def test_endpoints_take_turns_whatever_waits_for_each() -> None:
    queued = [build("greedy", float(number)) for number in range(5)] + [build("modest", 100.0)]
    order, turns = [], {}
    while queued:
        found = next_build(queued, [], Slots(), {}, turns)
        assert found is not None
        turns[subject(found)] = len(order) + 1
        order.append(found.subject)
        queued.remove(found)
    assert order[:3] == ["greedy", "modest", "greedy"]

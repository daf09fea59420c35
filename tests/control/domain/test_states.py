"""The tables of states: every move that is not in them is refused, and what is drawn from them is complete."""

from __future__ import annotations

from enum import StrEnum

import pytest

from puna.control.domain import states
from puna.control.domain.states import (
    BUILD_MOVES,
    ENDPOINT_MOVES,
    REPLICA_MOVES,
    REVISION_MOVES,
    STEP_MOVES,
    BuildState,
    EndpointState,
    ReplicaState,
    RevisionState,
)
from puna.control.store.database import check_move
from puna.errors import ConflictError

ALL = [BUILD_MOVES, STEP_MOVES, REVISION_MOVES, REPLICA_MOVES, ENDPOINT_MOVES]


@pytest.mark.parametrize("moves", ALL, ids=lambda m: type(next(iter(m))).__name__)
def test_every_state_has_a_row_and_can_be_reached(moves: dict[StrEnum, dict[StrEnum, str]]) -> None:
    kind = type(next(iter(moves)))
    assert set(moves) == set(kind)
    first, reached = next(iter(kind)), set()
    todo = [first]
    while todo:
        state = todo.pop()
        reached.add(state)
        todo += [after for after in moves[state] if after not in reached]
    assert reached == set(kind)


def test_an_illegal_move_names_the_thing_and_both_states() -> None:
    with pytest.raises(ConflictError) as caught:
        check_move("revision 3 of `app`", REVISION_MOVES, RevisionState.FAILED, RevisionState.SERVING)
    assert caught.value.message == "revision 3 of `app` cannot go from `failed` to `serving`"
    assert "final" in caught.value.hint
    with pytest.raises(ConflictError, match="from `gone` to `ready`"):
        check_move("replica `x`", REPLICA_MOVES, ReplicaState.GONE, ReplicaState.READY)


def test_only_a_ready_replica_falls_asleep_and_one_that_sleeps_can_do_all_that_a_ready_one_can() -> None:
    asleep, ready = ReplicaState.ASLEEP, ReplicaState.READY
    assert [before for before, targets in REPLICA_MOVES.items() if asleep in targets] == [ready]
    assert set(REPLICA_MOVES[asleep]) == set(REPLICA_MOVES[ready]) - {asleep} | {ready}
    assert states.label(EndpointState.ASLEEP) == "asleep: wakes on the next request"


def test_a_serving_revision_can_only_be_retired() -> None:
    assert set(REVISION_MOVES[RevisionState.SERVING]) == {RevisionState.RETIRED}


@pytest.mark.parametrize("name", list(states.TABLES))
def test_a_diagram_shows_every_move(name: str) -> None:
    text = states.diagram(name)
    assert text.startswith("```mermaid\nstateDiagram-v2\n    [*] --> ")
    for before, targets in states.TABLES[name][1].items():
        for after, why in targets.items():
            assert f"    {before} --> {after}: " in text and f"| {before} | {after} | {why} |" in text
        assert targets or f"    {before} --> [*]" in text


def test_labels_of_two_kinds_with_one_word_stay_apart() -> None:
    assert states.label(BuildState.FAILED) == "build failed"
    assert states.label(EndpointState.FAILED) == "failed"
    assert states.label(ReplicaState.READY) == "ready"
    assert all(states.label(s) for s in EndpointState)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"active": False, "serving": True}, "inactive"),
        ({}, "empty"),
        ({"failed": True}, "failed"),
        ({"pending": [RevisionState.QUEUED]}, "building"),
        ({"pending": [RevisionState.STARTING]}, "deploying"),
        ({"serving": True}, "idle"),
        ({"serving": True, "wanted": 1}, "starting"),
        ({"serving": True, "wanted": 1, "failures": 3}, "failing"),
        ({"serving": True, "wanted": 1, "failures": 3, "replicas": [ReplicaState.READY]}, "ready"),
        ({"serving": True, "pending": [RevisionState.BUILDING], "replicas": [ReplicaState.READY]}, "updating"),
        ({"serving": True, "failed": True, "replicas": [ReplicaState.READY]}, "ready"),
        ({"serving": True, "replicas": [ReplicaState.ASLEEP]}, "asleep"),
        ({"serving": True, "replicas": [ReplicaState.ASLEEP, ReplicaState.READY], "wanted": 1}, "ready"),
        ({"serving": True, "replicas": [ReplicaState.ASLEEP], "failures": 3}, "asleep"),
        ({"serving": True, "replicas": [ReplicaState.ASLEEP], "pending": [RevisionState.STARTING]}, "updating"),
        ({"active": False, "serving": True, "replicas": [ReplicaState.ASLEEP]}, "inactive"),
    ],
)
def test_what_an_endpoint_is_doing(given: dict[str, object], expected: str) -> None:
    usual: dict[str, object] = {
        "active": True,
        "serving": False,
        "pending": [],
        "failed": False,
        "replicas": [],
        "wanted": 0,
        "failures": 0,
    }
    assert states.endpoint_state(**usual | given) == expected  # type: ignore[arg-type]

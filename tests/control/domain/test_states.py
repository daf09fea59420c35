"""The tables of states: every move that is not in them is refused, and what is drawn from them is complete."""

from __future__ import annotations

import ast
from enum import StrEnum
from pathlib import Path

import pytest

import puna
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
    StepState,
    T,
)
from puna.control.store.database import check_move
from puna.control.store.store import Store
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


@pytest.mark.parametrize(("before", "after"), [(a, b) for a in StepState for b in StepState if b not in STEP_MOVES[a]])
def test_the_store_refuses_each_illegal_move_of_a_step(store: Store, before: StepState, after: StepState) -> None:
    """`check_move` is asked wherever a state is written; of steps it was not."""
    build = store.add_build("runtime", "r", 1, 1.0).id
    for state in {T.PENDING: [], T.RUNNING: [T.RUNNING], T.DONE: [T.RUNNING, T.DONE], T.FAILED: [T.RUNNING, T.FAILED]}[
        before
    ]:
        store.set_step(build, "environment", state)
    with pytest.raises(ConflictError, match=f"from `{before}` to `{after}`"):
        store.set_step(build, "environment", after)
    assert store.build(build).steps[0].state is before


def test_every_write_of_a_state_asks_the_table() -> None:
    """In the store, whatever writes the column `state` of a row that is there stands beside a `check_move`."""
    asked, unasked = 0, []
    for path in Path(puna.__file__).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                text = ast.unparse(function)
                if ".update()" in text and "state=str(" in text:
                    asked += "check_move(" in text
                    unasked += [] if "check_move(" in text else [f"{path.name}:{function.lineno} {function.name}"]
    assert asked >= 4 and unasked == []


def test_each_constant_is_told_in_a_sentence_of_its_own() -> None:
    body = ast.parse(Path(states.__file__).read_text()).body
    sets = [at for at, node in enumerate(body) if isinstance(node, ast.Assign) and "frozenset" in ast.unparse(node)]
    assert len(sets) >= 6
    for at in sets:
        assert isinstance(body[at + 1], ast.Expr), f"{ast.unparse(body[at])} has no sentence"
        assert not isinstance(body[at + 2], ast.Expr), f"{ast.unparse(body[at])} has two"


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

"""Which build begins next: builds run side by side, and take turns by endpoint and by the key that asked. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from puna.control.domain.records import Build
from puna.control.domain.states import StepState


@dataclass(frozen=True)
class Slots:
    """What is built, and how many may do what at once; a key that holds no place finds a few more."""

    kinds: tuple[str, ...] = ("revision", "runtime")
    building: int = 1
    """Environments and bundles: they take cores and disk."""
    trying: int = 8
    """Validations: an app's `initialize` takes what it likes of its `startup_timeout_s`, and hardly any core."""
    under_way: int = 64
    """All of them, those that wait for a place to be tried included."""
    guests: int = 2
    """Places beyond each number, for keys that hold none of these: nobody's builds can hold all."""


def is_free(places: int, holders: Collection[str], owner: str, guests: int) -> bool:
    """Whether a place is free for `owner`; who holds none finds `guests` more. `holders` hold those that are taken."""
    return len(holders) < places or (owner not in holders and len(holders) < places + guests)


def is_past(build: Build, step: str) -> bool:
    """Whether a step of a build has ended; one that it does not have never does."""
    return any(one.name == step and one.state is StepState.DONE for one in build.steps)


def next_build(
    queued: Sequence[Build],
    running: Sequence[Build],
    slots: Slots,
    digests: Mapping[str, str],
    turns: Mapping[str, int],
) -> Build | None:
    """The build to begin now, of those that wait, the oldest first; None when none may.

    An endpoint's builds run one after another, and an environment is built once while others wait for it: `digests`
    are the builds' environments by id, `turns` say when an endpoint or runtime had its last turn.
    """
    busy = {subject(build) for build in running}
    made = {digests.get(build.id) for build in running if not is_past(build, "environment")} - {None, ""}
    under_way = [build.owner for build in running]
    building = [build.owner for build in running if not is_past(build, "bundle")]
    for build in sorted(queued, key=lambda build: (turns.get(subject(build), 0), build.created)):
        has_place = is_free(slots.building, building, build.owner, slots.guests)
        has_place = has_place and is_free(slots.under_way, under_way, build.owner, slots.guests)
        if has_place and subject(build) not in busy and digests.get(build.id) not in made:
            return build
    return None


def subject(build: Build) -> str:
    """Whose turn it is: an endpoint, a runtime or a run."""
    return f"{build.kind} {build.subject}"

"""What the API answers about what is made: builds, sources, runtimes; and about use, added up."""

from __future__ import annotations

from pydantic import Field

from puna.control.api.shapes import ApiShape, Json, Problem
from puna.control.domain.states import BuildState, RevisionState, StepState


class Step(ApiShape):
    """One step of a build."""

    name: str
    state: StepState
    seconds: float | None


class Build(ApiShape):
    """One run of the builder."""

    id: str
    kind: str
    """`revision`, `runtime`, `merge` or `publish`."""
    subject: str
    """The endpoint's, the runtime's or the training run's name."""
    number: int
    """The revision's number or the runtime's version; 0 for a run."""
    status: BuildState
    created: float
    steps: list[Step]
    error: str
    hint: str
    detail: str
    arguments: Json
    """What a merge or a publishing was told."""


class QueuedBuild(Build):
    """A build that was asked for."""

    build_id: str


class SourceDigest(ApiShape):
    """The digest that a deploy names."""

    digest: str


class Source(ApiShape):
    """An uploaded source: its files and what they declare."""

    digest: str
    files: list[str]
    """500 of them, at most."""
    schema_: list[str] | None = Field(alias="schema")
    """The inputs, one a line."""
    project: Json | None
    """What inferless.yaml says."""
    runtime: str | None
    """The text of its runtime file."""
    error: Problem | None
    """Why it is no app."""


class PulledSource(ApiShape):
    """A repository's newest commit, kept as a source."""

    digest: str
    commit: str
    name: str
    settings: Json
    runtime: str | None
    runtime_version: int | None


class MadeSource(ApiShape):
    """The app that was made for a model, kept as a source."""

    digest: str
    name: str
    settings: Json
    model: str
    engine: str


class RuntimeVersion(ApiShape):
    """One version of a runtime."""

    name: str
    version: int
    digest: str
    status: BuildState
    build_id: str
    created: float


class Package(ApiShape):
    """A package as it is installed."""

    name: str
    version: str


class RuntimeUse(ApiShape):
    """A revision that needs a version of a runtime."""

    endpoint: str
    revision: int
    version: int
    state: RevisionState
    is_serving: bool


class Runtime(RuntimeVersion):
    """One version of a runtime: its file, what lies on the disk, who uses it, and what other versions there are."""

    yaml: str
    python_version: str | None
    packages: list[Package] | None
    """Null as long as nothing is installed."""
    size_bytes: int | None
    error: str
    hint: str
    log: str
    """Where its build's log is."""
    endpoints: list[RuntimeUse]
    versions: list[RuntimeVersion]


class Move(ApiShape):
    """A package that has another version."""

    name: str
    before: str
    after: str


class PackageChanges(ApiShape):
    """What differs between two environments."""

    added: list[Package]
    removed: list[Package]
    changed: list[Move]


class RuntimeDiff(ApiShape):
    """What differs between two versions of a runtime."""

    name: str
    from_: int = Field(alias="from")
    to: int
    yaml: str
    """The file's lines, as a unified diff."""
    packages: PackageChanges | None
    """Null when one of the two is not installed."""


class DeletedVersions(ApiShape):
    """Which versions of a runtime were deleted."""

    name: str
    deleted: list[int]


class Sums(ApiShape):
    """Requests and GPU-seconds, added up."""

    requests: int
    failed: int
    infer_s: float
    gpu_s: float


class Used(Sums):
    """What was used of one endpoint, key, hour or day; null is what was not asked for."""

    start: float | None
    endpoint: str | None
    key: str | None
    """A key's id; empty for requests without one."""
    key_name: str | None


class Usage(ApiShape):
    """What was used, added up; a sum of as many rows as there are groups, so it has no pages."""

    items: list[Used]
    total: Sums
    since: float
    until: float
    by: list[str]


class Judged(ApiShape):
    """A deploy that would be taken."""

    name: str
    is_new: bool
    """There is no endpoint of that name yet."""


class Linted(ApiShape):
    """A runtime file that can be read."""

    digest: str
    python_version: str | None
    packages: list[str]

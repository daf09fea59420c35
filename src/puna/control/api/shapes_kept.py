"""What the API answers about what is kept: keys, secrets, volumes, models, training runs, this machine."""

from __future__ import annotations

from typing import Literal

from puna.control.api.shapes import ApiShape, Json
from puna.control.api.shapes_made import Build


class Key(ApiShape):
    """One key, without its text."""

    id: str
    name: str
    scope: list[str]
    endpoints: list[str] | None
    """The only endpoints it opens; null for all."""
    expires: float | None
    created: float
    rate: str | None
    """Calls that it may make, as `10/s`; null for any number, as with the other limits."""
    tokens: str | None
    """Tokens that it may have read and written on OpenAI's paths, as `100k/min`."""
    concurrency: int | None
    """Calls that it may have open."""


class NewKey(Key):
    """A key that was made."""

    key: str
    """Its text: here, and nowhere else."""


class Caller(ApiShape):
    """What the key of a request opens."""

    scope: list[str]
    endpoints: list[str] | None
    expires: float | None
    id: str = ""
    """Missing for this machine's own user."""


class Link(ApiShape):
    """A link that opens the console once."""

    url: str
    expires_s: float


class Secret(ApiShape):
    """A set of values, by their names."""

    name: str
    keys: list[str]


class Volume(ApiShape):
    """A folder that outlives replicas."""

    name: str
    mount_path: str
    path: str
    """Where it lies on this machine."""
    endpoints: list[str]
    """Those that use it."""


class MadeVolume(Volume):
    """A volume that was asked for."""

    created: bool
    """False when it was there already."""


class Entry(ApiShape):
    """A file, a folder or a link in a volume."""

    path: str
    kind: str
    bytes: int
    modified: float


class Written(ApiShape):
    """A file that was written."""

    path: str
    bytes: int


class Fit(ApiShape):
    """Whether a model fits some room."""

    verdict: Literal["fits", "tight", "does not fit"]
    room_bytes: int
    left_bytes: int
    """Below 0: so much is missing."""
    free_now: bool
    """Nobody holds or uses that room."""
    said: str
    """The verdict with its sum, for people."""


class Fits(ApiShape):
    """Whether a model fits a whole GPU, and half of it."""

    whole: Fit
    half: Fit


class GpuHolder(ApiShape):
    """A replica, or a build, that a share of a GPU is kept for."""

    endpoint: str | None
    """Null for a build."""
    replica: str | None
    share: float
    used_bytes: int | None
    """What it used a moment ago; null where nobody knows."""
    limit_bytes: int
    """With more, it is ended."""


class Gpu(ApiShape):
    """One GPU, and the share of it that replicas and builds hold."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    held: float
    holders: list[GpuHolder]
    fit: Fits | None
    """Null when no model was asked about."""


class Sized(ApiShape):
    """What a model takes while it serves so many requests of so many tokens."""

    name: str
    kv_bytes_per_token: int
    """0: its config does not say."""
    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    total_bytes: int
    requests: int
    context: int


class Machine(ApiShape):
    """This machine."""

    cpus: float
    memory_bytes: int
    gpus: list[Gpu]
    model: Sized | None
    """Null when no model was asked about, or the source names none."""
    fit: Fit | None
    """Whether it fits the machine's own memory, for a replica on its CPUs."""


class ServedBy(ApiShape):
    """An endpoint whose serving or pending revision holds a model."""

    endpoint: str
    revision: int


class ModelVersion(ApiShape):
    """One version of a published model."""

    name: str
    """`owner/name`."""
    version: int
    digest: str
    path: str
    aliases: list[str]
    created: str
    """UTC, ISO 8601."""
    lineage: dict[str, str]
    """Role -> digest or name: base, dataset, recipe, adapter."""
    verification: Json | None
    """The figures of the check that the merged model is the trained one."""
    kind: str
    """`model` or `adapter`."""


class ListedModel(ModelVersion):
    """One version of a published model, with its size, the run that made it and the endpoints that serve it."""

    bytes: int | None
    """Null when its weights are gone."""
    run: str | None
    endpoints: list[ServedBy]


class PublishedAs(ApiShape):
    """A version that came of a run."""

    name: str
    version: int
    kind: str


class Compared(ApiShape):
    """One figure that was planned and has been measured."""

    name: str
    unit: str
    planned: float
    measured: float
    error: float
    """How far off, as a share of the planned one."""


class ListedRun(ApiShape):
    """A training run in short."""

    name: str
    path: str
    state: str
    """`running`, `finished`, `failed` or `interrupted`."""
    step: int
    steps: int
    started: str
    ended: str
    error: str
    seconds: float | None
    seconds_left: float | None
    last: Json
    """The newest value of every figure."""
    adapter: str
    """The digest of what it made; empty before it has finished."""
    merge: Json | None
    published: list[PublishedAs]


class Run(ListedRun):
    """A training run with its recipe, plan and figures."""

    recipe: Json
    plan: Json
    base: str
    dataset: str
    data: Json
    metrics: list[Json]
    """One line a logged step."""
    samples: list[dict[str, str]]
    """Replies before and after training."""
    compared: list[Compared]
    builds: list[Build]
    """Its merges and publishings, oldest first."""


class LogLine(ApiShape):
    """A line that an app, or Puna beside it, has printed."""

    at: str
    """ISO 8601 in UTC."""
    replica: str
    stream: str
    """`stdout` or `stderr`."""
    request: str | None
    """The id of the call during which it was printed."""
    text: str

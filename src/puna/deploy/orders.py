"""What is asked of endpoints, done in the store: a deploy, a rebuild, other settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from puna.backends import mounts
from puna.deploy import reach, sources
from puna.deploy import settings as reading
from puna.deploy.control import Control, WantedModel
from puna.deploy.records import Key, Order, Revision, Settings
from puna.deploy.settings import check_name
from puna.deploy.splits import WHOLE
from puna.deploy.states import PENDING, BuildState, RevisionState
from puna.deploy.volumes import Volumes
from puna.errors import ConflictError, NotFoundError, UsageError

Json = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """A deploy: of an uploaded `source`, or of what `git` or `model` names."""

    name: str
    source: str | None = None
    git: Mapping[str, str] | None = None
    model: WantedModel | None = None
    runtime: str | None = None
    runtime_version: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    percent: int = WHOLE
    """The share of the requests that it gets, when another revision serves."""


def deploy(control: Control, wanted: Wanted, key: Key | None = None) -> Json:
    """Queue a new revision, or find that the newest is the same; `key` is whose order it is.

    Raises:
        ForbiddenError: the key may not use a secret or volume of it.
        UsageError: a name or setting that makes no sense.
        ProjectError: the repository cannot be read, or holds no app.
        NotFoundError: no such source, runtime, secret or volume.
        MachineError: a volume cannot be mounted where it should.
        ConflictError: the runtime's environment could not be built.
    """
    if [wanted.source, wanted.git, wanted.model].count(None) != 2:
        raise UsageError("a deploy names a `source`, a `git` repository or a `model`, one of them", "see /api/docs")
    if wanted.name:
        check_name(wanted.name, "endpoint")  # before anything is fetched
    _check_credential(control, wanted, key)
    if wanted.git is not None:
        wanted = _pulled(control, wanted, wanted.git)
    elif wanted.model is not None:
        wanted = _modelled(control, wanted, wanted.model)
    store, now = control.store, control.clock()
    check_name(wanted.name, "endpoint")
    source = sources.find(control.home, wanted.source or "").digest
    before = next((e for e in store.endpoints() if e.name == wanted.name), None)
    kept = dataclasses.replace(before.settings, replace=False) if before else None
    settings = reading.parse({key: value for key, value in wanted.settings.items() if key != "git"}, kept)
    settings = dataclasses.replace(settings, git=dict(wanted.git or {}))
    if not settings.git:  # a folder is no repository, whatever was there before
        settings = dataclasses.replace(settings, auto_rebuild=False, poll_s=0.0)
    _check_parts(control, settings, key)
    version = _runtime_version(control, wanted)
    beside = wanted.percent if before is not None and before.serving is not None else WHOLE
    order = Order(source, wanted.runtime, version, settings, beside)
    same = store.unchanged(wanted.name, order)
    store.save_endpoint(wanted.name, settings, now)
    if same is not None:
        return _shown(wanted.name, same, unchanged=True)
    return _build(control, wanted.name, order)


def _pulled(control: Control, wanted: Wanted, git: Mapping[str, str]) -> Wanted:
    """The deploy of a repository as one of a source, with what the project's own file says where nothing was said."""
    kept = reading.parse_git(git, {})
    pulled = control.pull(kept)
    return Wanted(
        wanted.name or reading.endpoint_name(pulled.name),
        pulled.source,
        {**kept, "commit": pulled.commit},
        runtime=wanted.runtime or pulled.runtime,
        runtime_version=wanted.runtime_version or (pulled.runtime_version if not wanted.runtime else None),
        settings=_over(pulled.settings, wanted.settings),
        percent=wanted.percent,
    )


def _modelled(control: Control, wanted: Wanted, model: WantedModel) -> Wanted:
    """The deploy of a model as one of the source that is made for it."""
    made = control.make(model)
    settings = _over(made.settings, wanted.settings)
    if made.settings["secrets"]:  # the app asks the hub as whoever looked at it just now
        settings["secrets"] = list(dict.fromkeys([*made.settings["secrets"], *settings["secrets"]]))
    return dataclasses.replace(wanted, name=wanted.name or made.name, source=made.source, model=None, settings=settings)


def _over(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> Json:
    """A project's own settings under those that were asked for; of `env` each name by itself."""
    said = {key: value for key, value in asked.items() if value is not None}
    return {**settings, **said, "env": {**settings["env"], **(said.get("env") or {})}}


def rebuild(control: Control, name: str, *, only_changed: bool = False) -> Json:
    """Build an endpoint again as a new revision: the newest commit of its repository, or its newest source.

    With `only_changed` nothing is built when the newest revision is of the same source. Settings stay as they are.

    Raises:
        ConflictError: it was never deployed.
        PunaError: the repository cannot be read, or holds no app; what serves goes on.
    """
    store = control.store
    endpoint = store.endpoint(name)
    newest = next(iter(store.revisions(name)), None)
    if newest is None:
        raise ConflictError(f"`{name}` has nothing to rebuild", "`puna deploy FOLDER`")
    settings, source = endpoint.settings, newest.source
    if settings.git:
        pulled = control.pull(settings.git)
        # Read again: fetching took a while, and settings may have been changed in it.
        settings, source = store.endpoint(name).settings, pulled.source
        settings = dataclasses.replace(settings, git={**settings.git, "commit": pulled.commit})
        store.save_endpoint(name, settings, control.clock(), active=None)
    order = Order(source, newest.runtime, newest.runtime_version, settings)
    same = store.unchanged(name, order) if only_changed else None
    if same is not None:  # of an older commit, perhaps: only files outside its folder have changed
        return _shown(name, same, unchanged=True) | ({"commit": settings.git["commit"]} if settings.git else {})
    return _build(control, name, order)


def patch(control: Control, name: str, values: Mapping[str, Any], key: Key | None = None) -> int | None:
    """Change settings of an endpoint, or the runtime that it is built on; the number of the revision that it took.

    `runtime` is a runtime's name, or empty for the file beside the app; its newest version unless `runtime_version`
    says another.

    Raises:
        UsageError: a setting that makes no sense.
        NotFoundError: there is no such runtime.
        ConflictError: the runtime's environment could not be built, or the endpoint was never deployed.
    """
    store, now = control.store, control.clock()
    endpoint = store.endpoint(name)
    others = {key: value for key, value in values.items() if key not in ("runtime", "runtime_version")}
    settings = reading.parse(others, endpoint.settings)
    _check_parts(control, settings, key)
    rebased = _rebased(control, name, values, settings)
    if endpoint.split is not None and (rebased is not None or settings.launch != endpoint.settings.launch):
        both = " and ".join(str(number) for number in endpoint.shares)
        raise ConflictError(
            f"revisions {both} of `{name}` share its requests, and what would be changed belongs to a revision",
            f"`puna promote {name}` or `puna rollback {name}` first; limits can be changed meanwhile",
        )
    store.save_endpoint(name, settings, now, active=None)
    if rebased is not None:
        return int(_build(control, name, rebased)["revision"])
    return _revise(control, name, settings) if settings.launch != endpoint.settings.launch else None


def _rebased(control: Control, name: str, values: Mapping[str, Any], settings: Settings) -> Order | None:
    """What is to be built when another runtime is asked for than the one that the endpoint has."""
    runtime, version = values.get("runtime"), values.get("runtime_version")
    if runtime is None and version is None:
        return None
    is_number = isinstance(version, int) and not isinstance(version, bool) and 0 < version < 2**31
    if not isinstance(runtime, str | None) or not (version is None or is_number):
        raise UsageError("`runtime` is a name, and `runtime_version` a number", "`puna runtime list`")
    base = _newest(control, name)
    if base is None:
        raise ConflictError(f"`{name}` was never deployed", "`puna deploy FOLDER`")
    chosen = (base.runtime if runtime is None else runtime) or None
    if chosen is None and version is not None:
        raise UsageError("a version was named, and no runtime", "`puna runtime list`")
    order = Order(
        base.source,
        chosen,
        _runtime_version(control, Wanted(name, None, None, None, chosen, version)),
        settings,
        _aim(base),
    )
    return None if (order.runtime, order.runtime_version) == (base.runtime, base.runtime_version) else order


def _newest(control: Control, name: str) -> Revision | None:
    """The newest revision that is alive, else the newest."""
    revisions = control.store.revisions(name)
    alive = [r for r in revisions if r.state in PENDING or r.state is RevisionState.SERVING]
    return max(alive or revisions, key=lambda r: r.asked, default=None)


def _build(control: Control, name: str, order: Order) -> Json:
    now = control.clock()
    revision = control.store.add_revision(name, order, now)
    build = control.store.add_build("revision", name, revision.number, now)
    control.wake()
    return _shown(name, dataclasses.replace(revision, build_id=build.id))


def _shown(name: str, revision: Revision, *, unchanged: bool = False) -> Json:
    commit = {"commit": revision.settings.git["commit"]} if revision.settings.git.get("commit") else {}
    answer = {"endpoint": name, "revision": revision.number, "build_id": revision.build_id, "unchanged": unchanged}
    return answer | commit


def _runtime_version(control: Control, wanted: Wanted) -> int | None:
    if wanted.runtime is None:
        return None
    runtime = control.store.runtime(wanted.runtime, wanted.runtime_version)
    if runtime.state in (BuildState.FAILED, BuildState.CANCELLED):
        raise ConflictError(
            f"runtime `{runtime.name}` version {runtime.version}: its build {runtime.state}",
            f"`puna runtime upload FILE --name {runtime.name}` builds it again",
        )
    return runtime.version


def _check_credential(control: Control, wanted: Wanted, key: Key | None) -> None:
    """Before anything is fetched with it."""
    if wanted.git is not None:
        reach.credential(control.store.endpoints(), key, wanted.git.get("credential", ""), wanted.git["url"])
    elif wanted.model is not None:
        reach.credential(control.store.endpoints(), key, wanted.model.credential)


def _check_parts(control: Control, settings: Settings, key: Key | None) -> None:
    """What the app needs must be there, and be for whom asks, before anything is built or started for it."""
    reach.check(control.store.endpoints(), key, settings)
    mounts.check(Volumes(control.home).mounted(settings.volumes))
    known = control.store.secrets()
    credential = settings.git.get("credential")
    for name in [*settings.secrets, *([credential] if credential else [])]:
        if name not in known:
            raise NotFoundError(f"there is no secret `{name}`", f"`puna secret set {name} KEY=VALUE`")


def _revise(control: Control, name: str, settings: Settings) -> int | None:
    """A revision as the newest one that is alive, with other settings; what has been built is not built again."""
    alive = [r for r in control.store.revisions(name) if r.state in PENDING or r.state is RevisionState.SERVING]
    base: Revision | None = max(alive, key=lambda r: r.asked, default=None)
    if base is None:
        return None
    order = Order(base.source, base.runtime, base.runtime_version, settings, _aim(base))
    if not base.bundle:
        return int(_build(control, name, order)["revision"])
    return control.store.add_revision(name, order, control.clock(), copy_of=base).number


def _aim(base: Revision) -> int:
    """The share that what takes a revision's place is to have: that of one which is still on its way to it."""
    return base.percent if base.state in PENDING else WHOLE

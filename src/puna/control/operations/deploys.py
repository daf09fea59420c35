"""Changes of endpoints, done in the store: a deploy, a rebuild, other settings, shares of the traffic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired

from typing_extensions import TypedDict

from puna import names
from puna.backends import workspace
from puna.config import settings as reading
from puna.config.settings import Settings
from puna.control.domain import api_keys
from puna.control.domain.api_keys import owner
from puna.control.domain.records import WHOLE, Delivery, Endpoint, Key, Revision, RevisionSpec
from puna.control.domain.states import PAST, PENDING, BuildState
from puna.control.operations.context import Control
from puna.control.operations.origins import WantedModel
from puna.control.resources import revision_files
from puna.control.resources.volumes import Volumes
from puna.control.store.revisions import Change, QueuedRevision
from puna.errors import ConflictError, NotFoundError, UsageError

Json = dict[str, Any]
REPOSITORY = "repository"
"""The owner of builds that a repository asked for; the ids of keys are hex digits."""


class Deployed(TypedDict):
    """The outcome of a deploy, rebuild or rollback."""

    endpoint: str
    revision: int
    build_id: str | None
    unchanged: bool
    """It is the newest revision already; nothing is built."""
    commit: NotRequired[str]
    """The commit that was fetched, for a repository."""


@dataclass(frozen=True)
class DeployRequest:
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


def deploy(control: Control, wanted: DeployRequest, key: Key | None = None) -> Deployed:
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
        names.check("endpoint", wanted.name)  # before anything is fetched
    _check_credential(control, wanted, key)
    if wanted.git is not None:
        wanted = _pulled(control, wanted, wanted.git)
    elif wanted.model is not None:
        wanted = _modelled(control, wanted, wanted.model)
    names.check("endpoint", wanted.name)
    source = revision_files.find_source(control.home, wanted.source or "").digest
    version = _runtime_version(control, wanted.runtime, wanted.runtime_version)

    def spec_of(before: Endpoint | None, _newest: Revision | None) -> RevisionSpec:
        beside = wanted.percent if before is not None and before.serving is not None else WHOLE
        return RevisionSpec(source, wanted.runtime, version, settings_of(wanted, before), beside)

    before = next((e for e in control.store.endpoints() if e.name == wanted.name), None)
    _check_parts(control, spec_of(before, None).settings, key)
    damaged = _damaged(control, before)
    revision_files.use_source(control.home, source)  # once nothing is refused any more
    queued = control.store.deploy(wanted.name, spec_of, control.clock(), owner(key), damaged)
    return _shown(control, queued)


def _damaged(control: Control, endpoint: Endpoint | None) -> set[int]:
    """The revisions that serve an endpoint from files which are not as they were built."""
    shares = endpoint.shares if endpoint is not None else {}
    revisions = [control.store.revision(endpoint.name, number) for number in shares] if endpoint is not None else []
    return {revision.number for revision in revisions if revision_files.damage_of(control.home, revision)}


def judge(control: Control, name: str, settings: Mapping[str, Any], key: Key | None = None) -> bool:
    """Refuse what a deploy with these settings would be refused for; whether the endpoint is there already.

    Raises:
        ForbiddenError, UsageError, NotFoundError, MachineError: as `deploy`.
    """
    names.check("endpoint", name)
    before = next((e for e in control.store.endpoints() if e.name == name), None)
    _check_parts(control, settings_of(DeployRequest(name, settings=settings), before), key)
    return before is not None


def settings_of(wanted: DeployRequest, before: Endpoint | None) -> Settings:
    """The settings that a deploy comes to: what it says, over those that the endpoint has.

    Raises:
        UsageError: a setting that makes no sense.
    """
    kept = before.settings.replaced(replace=False) if before else None
    settings = reading.parse({key: value for key, value in wanted.settings.items() if key != "git"}, kept)
    settings = settings.replaced(git=dict(wanted.git or {}))
    if settings.git:
        return settings
    return settings.replaced(auto_rebuild=False, poll_s=0.0)  # a folder is none, whatever was there before


def _pulled(control: Control, wanted: DeployRequest, git: Mapping[str, str]) -> DeployRequest:
    """The deploy of a repository as one of a source, with what the project's own file says where nothing was said."""
    kept = reading.parse_git(git, {})
    pulled = control.pull(kept)
    return DeployRequest(
        wanted.name or pulled.name,
        pulled.source,
        {**kept, "commit": pulled.commit},
        runtime=wanted.runtime or pulled.runtime,
        runtime_version=wanted.runtime_version or (pulled.runtime_version if not wanted.runtime else None),
        settings=_over(pulled.settings, wanted.settings),
        percent=wanted.percent,
    )


def _modelled(control: Control, wanted: DeployRequest, model: WantedModel) -> DeployRequest:
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


def rebuild(
    control: Control,
    name: str,
    *,
    only_changed: bool = False,
    key: Key | None = None,
    deliveries: Sequence[Delivery] = (),
) -> Deployed:
    """Build an endpoint again as a new revision: the newest commit of its repository, or its newest source.

    With `only_changed` nothing is built when the newest revision is of the same source. Settings stay as they are.
    `deliveries` are what asked for it, when nobody did.

    Raises:
        ConflictError: it was never deployed.
        PunaError: the repository cannot be read, or holds no app; what serves goes on.
    """
    endpoint = control.store.endpoint(name)
    nothing = ConflictError(f"`{name}` has nothing to rebuild", "`puna deploy FOLDER`")
    if not control.store.revisions(name):
        raise nothing
    pulled = control.pull(endpoint.settings.git) if endpoint.settings.git else None

    def spec_of(current: Endpoint | None, newest: Revision | None) -> RevisionSpec:
        # As they are now: fetching took a while, and settings may have been changed in it.
        if current is None or newest is None:
            raise nothing
        settings, source = current.settings, newest.source
        if pulled is not None and settings.git:
            settings = settings.replaced(git={**settings.git, "commit": pulled.commit})
            source = pulled.source
        return RevisionSpec(source, newest.runtime, newest.runtime_version, settings)

    asker, now = REPOSITORY if deliveries else owner(key), control.clock()
    queued = control.store.rebuild(name, spec_of, now, only_changed=only_changed, owner=asker, deliveries=deliveries)
    # Of an older commit, perhaps, when it is unchanged: only files outside its folder have changed.
    answer = _shown(control, queued)
    if pulled is not None:
        answer["commit"] = pulled.commit
    return answer


def patch(
    control: Control, name: str, values: Mapping[str, Any], key: Key | None = None, active: bool | None = None
) -> int | None:
    """Change settings of an endpoint, or the runtime that it is built on; the number of the revision that it took.

    `runtime` is a runtime's name, or empty for the file beside the app; its newest version unless `runtime_version`
    says another. `active` activates or deactivates it with the same stroke.

    Raises:
        UsageError: a setting that makes no sense.
        NotFoundError: there is no such runtime.
        ConflictError: the runtime's environment could not be built, or the endpoint was never deployed.
    """
    store = control.store
    others = {key: value for key, value in values.items() if key not in ("runtime", "runtime_version")}

    def change_of(endpoint: Endpoint, base: Revision | None) -> Change:
        settings = reading.parse(others, endpoint.settings)
        rebased = _rebased(control, base, values, settings, name)
        is_revised = settings.launch != endpoint.settings.launch
        if endpoint.split is not None and (rebased is not None or is_revised):
            both = " and ".join(str(number) for number in endpoint.shares)
            raise ConflictError(
                f"revisions {both} of `{name}` share its requests, and what would be changed belongs to a revision",
                f"`puna promote {name}` or `puna rollback {name}` first; limits can be changed meanwhile",
            )
        if rebased is not None:
            return Change(settings, rebased)
        return _revised(base, settings) if is_revised else Change(settings)

    planned = change_of(store.endpoint(name), store.newest_alive(name))
    _check_parts(control, planned.settings, key)  # before the transaction: it looks at folders
    number = store.change(name, change_of, control.clock(), active=active, owner=owner(key))
    control.wake()
    return number


def _rebased(
    control: Control, base: Revision | None, values: Mapping[str, Any], settings: Settings, name: str
) -> RevisionSpec | None:
    """The spec to build when another runtime is asked for than the one that the endpoint has."""
    runtime, version = values.get("runtime"), values.get("runtime_version")
    if runtime is None and version is None:
        return None
    is_number = isinstance(version, int) and not isinstance(version, bool) and 0 < version < 2**31
    if not isinstance(runtime, str | None) or not (version is None or is_number):
        raise UsageError("`runtime` is a name, and `runtime_version` a number", "`puna runtime list`")
    if base is None:
        raise ConflictError(f"`{name}` was never deployed", "`puna deploy FOLDER`")
    chosen = (base.runtime if runtime is None else runtime) or None
    if chosen is None and version is not None:
        raise UsageError("a version was named, and no runtime", "`puna runtime list`")
    spec = RevisionSpec(base.source, chosen, _runtime_version(control, chosen, version), settings, _aim(base))
    return None if (spec.runtime, spec.runtime_version) == (base.runtime, base.runtime_version) else spec


def _revised(base: Revision | None, settings: Settings) -> Change:
    """A revision as the newest one that is alive, with other settings; what has been built is not built again."""
    if base is None or base.state in PAST:
        return Change(settings)
    spec = RevisionSpec(base.source, base.runtime, base.runtime_version, settings, _aim(base))
    return Change(settings, spec, base if base.bundle else None)


def _shown(control: Control, queued: QueuedRevision) -> Deployed:
    revision = queued.revision
    if not queued.is_unchanged:
        control.wake()
    answer: Deployed = {
        "endpoint": revision.endpoint,
        "revision": revision.number,
        "build_id": revision.build_id,
        "unchanged": queued.is_unchanged,
    }
    if revision.settings.git.get("commit"):
        answer["commit"] = revision.settings.git["commit"]
    return answer


def _runtime_version(control: Control, name: str | None, version: int | None) -> int | None:
    if name is None:
        return None
    runtime = control.store.runtime(name, version)
    if runtime.state in (BuildState.FAILED, BuildState.CANCELLED):
        raise ConflictError(
            f"runtime `{runtime.name}` version {runtime.version}: its build {runtime.state}",
            f"`puna runtime upload FILE --name {runtime.name}` builds it again",
        )
    return runtime.version


def _check_credential(control: Control, wanted: DeployRequest, key: Key | None) -> None:
    """Before anything is fetched with it."""
    if wanted.git is not None:
        api_keys.check_credential(control.store.endpoints(), key, wanted.git.get("credential", ""), wanted.git["url"])
    elif wanted.model is not None:
        api_keys.check_credential(control.store.endpoints(), key, wanted.model.credential)


def _check_parts(control: Control, settings: Settings, key: Key | None) -> None:
    """Check that what the app needs is there, and is for the caller, before anything is built or started for it."""
    api_keys.check_grants(control.store.endpoints(), key, settings)
    workspace.check_volumes(Volumes(control.home).mounted(settings.volumes))
    known = control.store.secrets()
    credential = settings.git.get("credential")
    for name in [*settings.secrets, *([credential] if credential else [])]:
        if name not in known:
            raise NotFoundError(f"there is no secret `{name}`", f"`puna secret set {name} KEY=VALUE`")


def _aim(base: Revision) -> int:
    """The share that what takes a revision's place is to have: that of one which is still on its way to it."""
    return base.percent if base.state in PENDING else WHOLE


def divide(control: Control, name: str, shares: Mapping[int, int]) -> int:
    """Give two revisions their shares of the requests, in percent, or one all of them; the one that is to change.

    One of two is the revision that serves; what is not said is its. The other is rolled out when it has no share yet.

    Raises:
        UsageError: these are no shares.
        NotFoundError: there is no such revision.
        ConflictError: the other one was never built, or nothing serves yet.
    """
    endpoint, asked = control.store.endpoint(name), {number: share for number, share in shares.items() if share}
    usage = f'e.g. `puna traffic {name} 3=90 4=10`, {{"shares": {{"3": 90, "4": 10}}}}'
    if not asked or any(share < 0 for share in asked.values()):
        raise UsageError("shares are percent of the requests, by revision", usage)
    for number in asked:
        control.store.revision(name, number)
    if len(asked) == 1 and WHOLE not in asked.values() and endpoint.serving not in (None, *asked):
        asked[endpoint.serving] = WHOLE - sum(asked.values())  # type: ignore[index]
    if len(asked) > 2 or sum(asked.values()) != WHOLE:
        said = ", ".join(f"{number}={share}" for number, share in asked.items())
        raise UsageError(f"{said}: the shares of one or two revisions must make up 100 %", usage)
    if len(asked) == 1:
        return promote(control, name, *asked)
    return control.store.divide(name, asked, control.clock())


def promote(control: Control, name: str, number: int | None = None) -> int:
    """Give a revision all requests, once it has the replicas for them: the second one of a split when None; which.

    Raises:
        NotFoundError: there is no such revision.
        ConflictError: there is no second one, or it was never built.
    """
    promoted = control.store.promote(name, number, control.clock())
    control.wake()  # builds may have been cancelled
    return promoted


def roll_back(control: Control, name: str, number: int | None = None) -> int:
    """Take a split away, or roll an earlier revision out again, the one before when None; which is to serve.

    Raises:
        NotFoundError: there is no such revision.
        ConflictError: there is none before, it was never built, or has a share already.
    """
    revision = control.store.roll_back(name, number, control.clock())
    control.wake()
    return revision.number

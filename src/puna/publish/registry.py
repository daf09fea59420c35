"""Published models by name and version: one JSON file a name, versions that never change, aliases that move."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from puna import names
from puna.artifacts import SHORT, Adapter, Model, drafting, link, write_json
from puna.errors import ConflictError, NotFoundError, PublishError, UsageError, nearest
from puna.home import Home
from puna.process.locks import locked

LATEST = "latest"
SERVING_BASE = "serving_base"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Ref:
    """A published model as a user names it: at most one of version and alias is set."""

    name: str
    version: int | None = None
    alias: str | None = None


def parse(text: str) -> Ref:
    """`owner/name`, `owner/name:3` or `owner/name@champion`.

    Raises:
        UsageError: it is none of them.
    """
    name, at, alias = text.partition("@")
    if at:
        return Ref(names.check("model", name), alias=names.check("alias", alias))
    name, colon, version = text.partition(":")
    if colon and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise UsageError(f"`{version}` is not a version", f"write {name}:1, or {name}@latest")
    return Ref(names.check("model", name), version=int(version) if colon else None)


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a published model."""

    name: str
    """`owner/name`."""
    version: int
    digest: str
    path: Path
    aliases: tuple[str, ...]
    created: str
    """UTC, ISO 8601."""
    lineage: Mapping[str, str]
    """Role -> digest or ref: base, dataset, recipe, adapter; `serving_base`, what an adapter is served on."""
    verification: Mapping[str, Any] | None = None
    """The figures of the check that the merged model is the trained one; None for a model published unverified."""
    kind: str = Model.kind
    """`model`, or `adapter`: published without merging."""

    @property
    def ref(self) -> str:
        """`owner/name:version`."""
        return f"{self.name}:{self.version}"


class Registry:
    """Published models under `home.registry`; any number of processes may use it at once."""

    def __init__(self, home: Home) -> None:
        """Over the registry of `home`."""
        self._home = home

    def publish(
        self,
        model: Model | Adapter,
        name: str,
        *,
        aliases: tuple[str, ...] = (LATEST,),
        verification: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> RegisteredVersion:
        """Give a model a name and the next version; a digest that is there already keeps its version.

        `verification` is read from the model's manifest when not given; an adapter needs none, nothing was merged.
        The aliases move to this version.

        Raises:
            UsageError: the name or an alias is not valid.
            ConflictError: the name is a model's and this is an adapter, or the other way round.
            PublishError: the model is unverified or failed its verification, and `force` is not set.
        """
        names.check("model", name)
        for alias in aliases:
            names.check("alias", alias)
        verdict = verification if verification is not None else model.manifest.metrics.get("verification")
        with self._locked():
            entry = self._read(name) or {"name": name, "next": 1, "versions": [], "aliases": {}}
            _check_kind(entry, model.kind)
            found = next((v for v in entry["versions"] if v["digest"] == model.digest), None)
            if found is None:
                if not force and model.kind == Model.kind:
                    _check_verified(name, verdict)
                found = {
                    "version": entry["next"],
                    "digest": model.digest,
                    "created": datetime.now(UTC).isoformat(),
                    "lineage": dict(model.manifest.made_from),
                    "verification": None if verdict is None else dict(verdict),
                    "kind": model.kind,
                }
                entry["versions"].append(found)
                entry["next"] += 1
            entry["aliases"] |= dict.fromkeys(aliases, found["version"])
            self._write(entry)
        return self._version(entry, found)

    def resolve(self, ref: str) -> RegisteredVersion:
        """The version that `owner/name`, `owner/name:version` or `owner/name@alias` means; alone, `latest`.

        Raises:
            UsageError: `ref` is not of that form.
            NotFoundError: there is no such name, version or alias, or its weights are gone.
        """
        wanted = parse(ref)
        entry = self._entry(wanted)
        version = self._version(entry, _find(entry, wanted))
        if not version.path.is_dir():
            raise NotFoundError(
                f"{version.ref} was published, but its weights are gone from {version.path}",
                f"publish it again, or remove the entry with `puna model delete {version.ref} --force`",
            )
        return version

    def serving_base(self, version: RegisteredVersion) -> Model:
        """The model that an adapter is served on.

        Raises:
            NotFoundError: its weights are gone.
        """
        return Model.open(self._folder(version.lineage[SERVING_BASE]))

    def list(self) -> list[RegisteredVersion]:
        """Every version of every name, by name and version."""
        names = sorted(f"{path.parent.name}/{path.stem}" for path in self._home.registry.glob("*/[!.]*.json"))
        entries = [entry for name in names if (entry := self._read(name))]
        return [self._version(entry, version) for entry in entries for version in entry["versions"]]

    def alias(self, ref: str, alias: str) -> RegisteredVersion:
        """Let `owner/name@alias` mean the version that `ref` means now.

        Raises:
            UsageError: the alias is not valid.
            NotFoundError: there is no such version.
        """
        names.check("alias", alias)
        wanted = parse(ref)
        with self._locked():
            entry = self._entry(wanted)
            found = _find(entry, wanted)
            entry["aliases"][alias] = found["version"]
            self._write(entry)
        return self._version(entry, found)

    def unalias(self, ref: str) -> None:
        """Forget the alias of `owner/name@alias`; the version that it meant stays.

        Raises:
            UsageError: `ref` names no alias.
            NotFoundError: there is no such name or alias.
        """
        wanted = parse(ref)
        if wanted.alias is None:
            raise UsageError(f"{ref} names no alias", f"write {wanted.name}@champion")
        with self._locked():
            entry = self._entry(wanted)
            _find(entry, wanted)
            del entry["aliases"][wanted.alias]
            self._write(entry)

    def delete(self, ref: str, force: bool = False) -> None:
        """Remove one version, or with a bare `owner/name` all of them, and weights that no other version names.

        Version numbers are not used again. Running replicas keep their files: a bundle has links of its own.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: an alias points to it, and `force` is not set.
        """
        wanted = parse(ref)
        with self._locked():
            entry = self._entry(wanted)
            whole = wanted.version is None and wanted.alias is None
            going = entry["versions"] if whole else [_find(entry, wanted)]
            numbers = {version["version"] for version in going}
            held = sorted(alias for alias, number in entry["aliases"].items() if number in numbers)
            if held and not force:
                raise ConflictError(
                    f"{ref} is what {', '.join(f'@{alias}' for alias in held)} points to",
                    f"move the alias, or `puna model delete {ref} --force`",
                )
            entry["versions"] = [v for v in entry["versions"] if v["version"] not in numbers]
            entry["aliases"] = {a: n for a, n in entry["aliases"].items() if n not in numbers}
            self._write(entry)
            kept = {digest for version in self.list() for digest in _held(version.digest, version.lineage)}
            for digest in {d for version in going for d in _held(version["digest"], version["lineage"])} - kept:
                shutil.rmtree(self._folder(digest), ignore_errors=True)

    # ------------------------------------------------------------ files

    def _locked(self) -> AbstractContextManager[int]:
        # Readers take no lock: a file is replaced whole, so they see the old one or the new one.
        return locked(self._home.registry / ".lock")

    def _file(self, name: str) -> Path:
        owner, short = name.split("/")
        return self._home.registry / owner / f"{short}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._file(name).read_text()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise PublishError(f"{self._file(name)} is damaged: {error}", "restore it, or remove it") from None

    def _write(self, entry: dict[str, Any]) -> None:
        file = self._file(entry["name"])
        file.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(file, entry)

    def _entry(self, wanted: Ref) -> dict[str, Any]:
        entry = self._read(wanted.name)
        if not entry or not entry["versions"]:
            published = {version.name for version in self.list()}
            hint = nearest(wanted.name, published) or "`puna model list` shows what is published"
            raise NotFoundError(f"no model {wanted.name} is published", hint)
        return entry

    def _folder(self, digest: str) -> Path:
        return self._home.models / digest[:SHORT]

    def _version(self, entry: dict[str, Any], version: dict[str, Any]) -> RegisteredVersion:
        aliases = tuple(sorted(alias for alias, number in entry["aliases"].items() if number == version["version"]))
        return RegisteredVersion(name=entry["name"], path=self._folder(version["digest"]), aliases=aliases, **version)


def _held(digest: str, lineage: Mapping[str, str]) -> set[str]:
    """The folders that a version needs: its own, and the model that it is served on."""
    return {digest, *([lineage[SERVING_BASE]] if SERVING_BASE in lineage else [])}


def _check_kind(entry: Mapping[str, Any], kind: str) -> None:
    before = {version.get("kind", Model.kind) for version in entry["versions"]} - {kind}
    if before:
        raise ConflictError(f"{entry['name']} is published as {before.pop()}, not as {kind}", "choose another name")


def _check_verified(name: str, verdict: Mapping[str, Any] | None) -> None:
    again = "publish with --force if you know why"
    if verdict is None:
        raise PublishError(f"{name} is not published: nobody checked that the model is the trained one", again)
    if verdict.get("passed") is not True:
        reasons = "; ".join(str(reason) for reason in verdict.get("reasons", ())) or "no reason was recorded"
        raise PublishError(f"{name} is not published: its verification failed: {reasons}", again)


def _find(entry: dict[str, Any], wanted: Ref) -> dict[str, Any]:
    versions = {version["version"]: version for version in entry["versions"]}
    if wanted.alias is not None and wanted.alias not in entry["aliases"]:
        known = ", ".join(sorted(entry["aliases"])) or "none"
        hint = nearest(wanted.alias, entry["aliases"]) or f"its aliases: {known}"
        raise NotFoundError(f"{wanted.name} has no alias `{wanted.alias}`", hint)
    # A name whose `latest` was deleted still means something: its newest version.
    newest = entry["aliases"].get(LATEST, max(versions))
    number = entry["aliases"][wanted.alias] if wanted.alias is not None else wanted.version or newest
    if number not in versions:
        raise NotFoundError(f"{wanted.name} has no version {number}", f"its versions: {', '.join(map(str, versions))}")
    return dict(versions[number])


def seal(adapter: Adapter, serving_base: Model, home: Home) -> Adapter:
    """A copy of a run's adapter that outlives the run, in hard links, with the model that it is served on as lineage.

    Raises:
        MachineError: the disk is full.
    """
    with drafting("adapter", home.models) as draft:
        for name in adapter.manifest.files:
            link(adapter.path / name, draft.path / name)
        draft.known |= dict(adapter.manifest.files)
        draft.made_from |= {**adapter.manifest.made_from, SERVING_BASE: serving_base.digest}
        draft.config |= dict(adapter.manifest.config)
        draft.metrics |= dict(adapter.manifest.metrics)
    return Adapter.open(draft.final)


def rank_of(folder: Path) -> int:
    """The rank of an adapter, as its config states it.

    Raises:
        NotFoundError: the config is gone or damaged.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        return int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(f"{folder / CONFIG} cannot be read: {error!r}", "publish the adapter again") from None


def of_base(registry: Registry, serving_base: str) -> dict[str, str]:
    """Every published adapter that is served on the model of that digest: `owner/name` and `owner/name:N` -> folder."""
    fits = [v for v in registry.list() if v.kind == Adapter.kind and v.lineage.get(SERVING_BASE) == serving_base]
    found = {version.ref: str(version.path) for version in fits}
    for version in fits:
        if LATEST in version.aliases:
            found[version.name] = str(version.path)
    return found

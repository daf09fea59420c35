"""Sources made from what a deploy names: a repository's newest commit, or the template app of a model."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna import names
from puna.config.repository import Repository
from puna.control.resources.secrets import Secrets
from puna.errors import NotFoundError, UsageError, nearest
from puna.home import Home
from puna.packaging import git, source, template
from puna.packaging.git import Credential
from puna.publish.hub import look
from puna.publish.registry import RegisteredVersion, Registry, parse


@dataclass(frozen=True)
class Pulled:
    """A repository's newest commit, kept as a source, and what its inferless.yaml says."""

    source: str
    commit: str
    name: str
    settings: Mapping[str, Any]
    runtime: str | None
    runtime_version: int | None


@dataclass(frozen=True)
class WantedModel:
    """A model to be served: a published one, in a version or under an alias, else one of that name on the hub."""

    name: str
    version: int | None = None
    alias: str | None = None
    engine: str = "auto"
    credential: str = ""
    """The secret set whose HF_TOKEN opens it on the hub; the app is given it too."""


@dataclass(frozen=True)
class Made:
    """The app made for a model, kept as a source, and what its inferless.yaml says."""

    source: str
    name: str
    settings: Mapping[str, Any]
    model: str
    """What it is exactly: `owner/name:version`, or `owner/name@commit` of the hub."""
    engine: str


class Repositories:
    """`Control.pull` and `Control.head` of a real machine."""

    def __init__(self, secrets: Secrets, home: Home) -> None:
        """Fetched commits become sources of `home`."""
        self._secrets, self._home = secrets, home

    def pull(self, values: Mapping[str, str]) -> Pulled:
        """The newest commit, kept as a source.

        Raises:
            NotFoundError: there is no such secret.
            PunaError: as `git.fetch`.
        """
        fetched = git.fetch(_repository(values), self._home, self._credential(values))
        project, digest = fetched.project, fetched.source.digest
        runtime = (project.runtime_name, project.runtime_version)
        return Pulled(digest, fetched.commit, project.name, project.settings, *runtime)

    def head(self, values: Mapping[str, str]) -> str:
        """The commit at its end, without fetching it.

        Raises:
            NotFoundError: there is no such secret.
            PunaError: as `git.head`.
        """
        return git.head(_repository(values), self._credential(values))

    def _credential(self, values: Mapping[str, str]) -> Credential | None:
        name = values.get("credential")
        return Credential.of(self._secrets.open([name])) if name else None


def _repository(values: Mapping[str, str]) -> Repository:
    return Repository(values.get("url", ""), values.get("branch", ""), values.get("folder", ""))


HUB_STARTUP_TIMEOUT_S = 3600.0
"""The first start of an app fetches its weights."""

SECRET = "`puna secret set my-hub HF_TOKEN=hf_...`, then --credential my-hub"
Secret = Callable[[Sequence[str]], Mapping[str, str]]
"""Gives the values of secret sets, by the names of the sets."""


def make_app(home: Home, secret: Secret, wanted: WantedModel) -> Made:
    """The template app for a model, kept as a source; the model's version or commit is settled here.

    Raises:
        UsageError: that is no name of a model, version, alias or engine.
        NotFoundError: it is neither published nor on the hub, or the hub cannot be asked, or there is no such secret.
    """
    engine = template.chosen(wanted.engine)
    registry = Registry(home)
    found = _published(registry, wanted)
    name = found.name if found else parse(wanted.name).name
    commit = None if found else _on_the_hub(registry, name, _token(wanted.credential, secret))
    with tempfile.TemporaryDirectory(dir=home.sources, prefix=f".draft-{os.getpid()}-model-") as temporary:
        folder, short = Path(temporary) / "app", names.normalise(name.rpartition("/")[2])
        pinned = found.ref if found else None
        template.init(folder, name, name=short, engine=engine, published=pinned, revision=commit)
        settings = source.check(folder).settings
        digest = source.snapshot(folder, home).digest
    if found is None:
        settings |= {"startup_timeout_s": HUB_STARTUP_TIMEOUT_S}
        settings |= {"secrets": [wanted.credential]} if wanted.credential else {}
    return Made(digest, short, settings, found.ref if found else f"{name}@{commit}", engine)


def _published(registry: Registry, wanted: WantedModel) -> RegisteredVersion | None:
    """The published version that is meant; None when nothing of that name is published, and no version was named."""
    said = parse(wanted.name)
    version, alias = wanted.version or said.version, wanted.alias or said.alias
    if version is not None and alias:
        raise UsageError(f"{said.name} was named with a version and an alias", "name one of the two")
    if version is not None:
        return registry.resolve(f"{said.name}:{version}")
    if alias:
        return registry.resolve(f"{said.name}@{alias}")
    return registry.resolve(said.name) if said.name in _names(registry) else None


def _names(registry: Registry) -> set[str]:
    return {version.name for version in registry.list()}


def _token(credential: str, secret: Secret) -> str:
    if not credential:
        return ""
    token = secret([credential]).get("HF_TOKEN", "")
    if not token:
        raise UsageError(f"the secret `{credential}` has no HF_TOKEN", f"puna secret set {credential} HF_TOKEN=hf_...")
    return token


def _on_the_hub(registry: Registry, name: str, token: str) -> str:
    try:
        return look(name, token)
    except NotFoundError as error:
        own = re.sub(r"set HF_TOKEN .*", SECRET, error.hint)  # the app's token, and not this process's
        hint = " / ".join(filter(None, (nearest(name, _names(registry)), own)))
        raise NotFoundError(f"no model {name} is published here, and {error.message}", hint, error.detail) from None

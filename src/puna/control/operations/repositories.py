"""Repositories that endpoints are built from, fetched with the credentials that their settings name."""

from __future__ import annotations

from collections.abc import Mapping

from puna.config.repository import Repository
from puna.control.operations.context import Pulled
from puna.control.resources.secrets import Secrets
from puna.home import Home
from puna.packaging import git
from puna.packaging.git import Credential


class Repositories:
    """What `Control.pull` and `Control.head` do on a real machine."""

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

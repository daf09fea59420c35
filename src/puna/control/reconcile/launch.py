"""From a replica's row, or a revision's that is to have a zygote, to its Launch: all that a backend needs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.artifacts import SHORT, Bundle
from puna.backends import workspace
from puna.backends.base import Launch
from puna.control.domain.records import Replica, Revision
from puna.control.resources.secrets import Secrets
from puna.control.resources.volumes import DEFAULT_ROOT, Volumes
from puna.control.store.store import Store
from puna.control.telemetry import log_files
from puna.home import Home
from puna.packaging.bundle import app_env


class Launching:
    """Calling it with a replica gives what its backend needs to start it."""

    def __init__(self, store: Store, home: Home, secrets: Secrets) -> None:
        self.store, self.home, self.secrets = store, home, secrets

    def __call__(self, replica: Replica) -> Launch:
        """The launch of one replica.

        Raises:
            NotFoundError: its bundle, environment or a secret is gone.
        """
        revision = self.store.revision(replica.endpoint, replica.revision)
        log = log_files.replica_log(self.home, replica.endpoint, replica.id)
        bundle = self._bundle(revision)
        launch = launch_of(replica.id, revision, bundle, self.home, self.secrets, log)
        return dataclasses.replace(
            launch,
            gpu=replica.gpu,
            inference_time_s=self.store.endpoint(replica.endpoint).settings.inference_time_s,
            warm=zygote_name(bundle, launch.env, launch.mounts),
        )

    def zygote_name(self, endpoint: str, revision: int) -> str:
        """The name of the zygote that replicas of a revision may be forked from.

        Raises:
            NotFoundError: its bundle, environment or a secret is gone.
        """
        row = self.store.revision(endpoint, revision)
        bundle = self._bundle(row)
        return zygote_name(bundle, environment_of(bundle, row, self.secrets), mounts_of(self.home, row))

    def zygote(self, endpoint: str, revision: int) -> Launch:
        """The launch of a revision's zygote; it takes no requests and no GPU.

        Raises:
            NotFoundError: its bundle, environment or a secret is gone.
        """
        name, row = self.zygote_name(endpoint, revision), self.store.revision(endpoint, revision)
        log = log_files.replica_log(self.home, endpoint, name)
        launch = launch_of(name, row, self._bundle(row), self.home, self.secrets, log)
        return dataclasses.replace(launch, warm=name)

    def _bundle(self, revision: Revision) -> Bundle:
        return Bundle.open(self.home.bundles / revision.bundle[:SHORT])


def launch_of(name: str, revision: Revision, bundle: Bundle, home: Home, secrets: Secrets, log: Path) -> Launch:
    """The launch of a process of a revision, without a GPU; its working copy is made.

    Raises:
        NotFoundError: a secret is gone.
    """
    settings, environment = revision.settings, str(bundle.manifest.made_from["environment"])
    return Launch(
        replica_id=name,
        python=home.environments / environment[:SHORT] / "venv" / "bin" / "python",
        app=workspace.prepare(bundle, name, home),
        socket=home.replica_socket(name),
        log=log,
        env=environment_of(bundle, revision, secrets),
        gpu_fraction=settings.gpu_fraction,
        vcpu=settings.vcpu,
        memory_bytes=int(settings.ram_gib * 2**30),
        concurrency=settings.container_concurrency,
        inference_time_s=settings.inference_time_s,
        startup_timeout_s=settings.startup_timeout_s,
        mounts=mounts_of(home, revision),
    )


def zygote_name(bundle: Bundle, env: Mapping[str, str], private: Mapping[str, str]) -> str:
    """One name for each bundle in each environment: what was imported in one is not for another."""
    text = json.dumps([bundle.digest, sorted(env.items()), sorted(private.items())])
    return f"zygote-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def environment_of(bundle: Bundle, revision: Revision, secrets: Secrets) -> Mapping[str, str]:
    """The whole environment of an app: what its bundle needs, its volume, its secrets, then its own settings."""
    extra = told_by_validation(revision.schema) | volume_env(revision.settings.volumes)
    return app_env(bundle, extra={**extra, **secrets.open(revision.settings.secrets), **revision.settings.env})


def told_by_validation(schema: Mapping[str, Any] | None) -> dict[str, str]:
    """Findings of validation for the bundle's replicas: what every reply must hold, what is proved."""
    found, schema = {}, schema or {}
    if schema.get("outputs"):
        found["PUNA_OUTPUTS"] = json.dumps([output["name"] for output in schema["outputs"]])
    if (schema.get("concurrency") or {}).get("limit", 1) > 1:
        found["PUNA_PROVED"] = "1"  # it has searched what libraries hold of the app: no start does so again
    return found


def volume_env(volumes: Mapping[str, str]) -> dict[str, str]:
    """Variables by which the platform's apps find their volume; of several, the first."""
    for name, path in volumes.items():
        return dict.fromkeys(("NFS_VOLUME", "NFS_PATH"), path or f"{DEFAULT_ROOT}/{name}")
    return {}


def mounts_of(home: Home, revision: Revision) -> dict[str, str]:
    """The volumes that a revision's processes must mount for themselves; those that can be links are linked."""
    return workspace.place_volumes(Volumes(home).mounted(revision.settings.volumes))

"""Every route that changes something, with an example that does: what a new route must be added to."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from puna.control.api.routing import declared
from security.fort import Fort

SAFE = {"GET", "HEAD", "OPTIONS"}
API = "/api/v1"


@dataclass(frozen=True)
class Example:
    """How a route is called so that it does something to what is the other owner's."""

    path: str = ""
    """What stands for the names in its path: `{name}` and the like are taken from the fort."""
    json: Any = None
    content: bytes | None = None
    admin: bool = False
    """A deploy key may not."""
    ours: bool = False
    """A key for some endpoints may: it concerns no endpoint, and changes nothing that is anybody's."""
    not_by_key: bool = False
    """The machine's own user only."""
    names: dict[str, str] = field(default_factory=dict)


def project() -> bytes:
    """An uploaded folder."""
    data, text = io.BytesIO(), b"class InferlessPythonModel:\n    def infer(self, inputs):\n        return {}\n"
    with tarfile.open(fileobj=data, mode="w") as archive:
        info = tarfile.TarInfo("app.py")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    return gzip.compress(data.getvalue(), mtime=0)


def examples(fort: Fort) -> dict[tuple[str, str], Example]:
    """By method and path, as the application has it."""
    git = {"url": "https://github.com/acme/other", "credential": "theirs"}
    yours = {"name": "yours"}
    found = {
        "POST /endpoints": Example(json={"name": "yours", "source": fort.source}),
        "PATCH /endpoints/{name}": Example(json={"max_replica": 7}, names=yours),
        "POST /endpoints/{name}/activate": Example(names=yours),
        "POST /endpoints/{name}/deactivate": Example(names=yours),
        "POST /endpoints/{name}/rebuild": Example(names=yours),
        "POST /endpoints/{name}/rollback": Example(json={"revision": 1}, names=yours),
        "PUT /endpoints/{name}/traffic": Example(json={"shares": {"1": 50, "2": 50}}, names=yours),
        "POST /endpoints/{name}/promote": Example(json={"revision": 1}, names=yours),
        "DELETE /endpoints/{name}": Example(names=yours),
        "POST /endpoints/{name}/deliveries/{number}/replay": Example(names=yours | {"number": str(fort.delivery)}),
        "PUT /sources": Example(content=project(), ours=True),
        "POST /sources/from-git": Example(json=git),
        "POST /sources/from-model": Example(json={"model": {"name": "acme/none", "credential": "theirs"}}),
        "POST /runtimes": Example(json={"name": "rt", "yaml": "build:\n  python_packages: []\n"}),
        "DELETE /runtimes/{name}": Example(names={"name": "rt"}),
        "DELETE /runtimes/{name}/versions/{version}": Example(names={"name": "rt", "version": "1"}),
        "POST /builds/{build_id}/cancel": Example(names={"build_id": fort.build}),
        "POST /keys": Example(json={"scope": ["admin"]}, admin=True),
        "DELETE /keys/{key_id}": Example(names={"key_id": fort.key("infer").id}, admin=True),
        "POST /secrets": Example(json={"name": "theirs", "values": {"GIT_TOKEN": "x"}}, admin=True),
        "DELETE /secrets/{name}": Example(names={"name": "unused"}, admin=True),
        "POST /volumes": Example(json={"name": "another"}),
        "DELETE /volumes/{name}": Example(names={"name": "empty"}),
        "PUT /volumes/{name}/files/{path:path}": Example(content=b"x", names={"name": "vault", "path": "new"}),
        "DELETE /volumes/{name}/files/{path:path}": Example(names={"name": "vault", "path": "file"}),
        "PUT /models/{owner}/{model}/aliases/{alias}": Example(
            json={"version": 1}, names={"owner": "acme", "model": "m", "alias": "champion"}
        ),
        "DELETE /models/{owner}/{model}/aliases/{alias}": Example(
            names={"owner": "acme", "model": "m", "alias": "latest"}
        ),
        "DELETE /models/{owner}/{model}/versions/{version}": Example(
            names={"owner": "acme", "model": "m", "version": "1"}
        ),
        "POST /runs/{name}/merge": Example(json={}, names={"name": "run-1"}),
        "POST /runs/{name}/publish": Example(json={"name": "acme/m"}, names={"name": "run-1"}),
        "POST /console/links": Example(not_by_key=True),
        "POST /lint/settings": Example(json={"name": "yours", "settings": {}}),
        "POST /lint/runtime": Example(json={"yaml": "build:\n  python_packages: []\n"}, ours=True),
    }
    made = {(words.split()[0], API + words.split()[1]): example for words, example in found.items()}
    update = Example(json={"model_id": "yours", "data": {"max_replica": 7}})
    times = {"time_from": "2024-05-28T00:00:00.000Z", "time_to": "2099-01-01T00:00:00.000Z"}
    read = Example(json={"model_id": "yours"} | times)
    for path, example in (("/rest/model/settings/update", update), ("/rest/model/logs/get", read)):
        made |= {("POST", path): example, ("POST", f"{path}/"): example}
    return made


OPEN = {
    ("POST", f"{API}/hooks/{{name}}"): "signed by its sender; test_webhooks.py",
    ("POST", f"{API}/console/sessions"): "needs a link that works once; tests/console/test_pages.py",
    ("POST", "/internal/load"): "on the control socket only; every path to it is tried in test_paths.py",
}
"""Routes that change something and take no key, and why."""


def walk(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path of the application, those that its documents do not show included."""
    return sorted((method, route.path) for route in declared(app.routes) for method in route.methods or ())


def mutating(app: FastAPI) -> list[tuple[str, str]]:
    """Those that may change something."""
    return [(method, path) for method, path in walk(app) if method not in SAFE]


def filled(path: str, names: dict[str, str]) -> str:
    """The path with the names in it."""
    for name, value in names.items():
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    assert "{" not in path, f"{path} needs an example for its names"
    return path

"""The API's part about who gets an endpoint's requests, and what differs between its revisions."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from puna.control import views
from puna.control.api.bodies import Number
from puna.control.operations import comparison
from puna.control.operations import deploys as traffic
from puna.control.operations.context import Control

Json = dict[str, Any]
Percent = Annotated[int, Ge(0), Le(100)]


class Shares(BaseModel):
    """What `PUT /endpoints/{name}/traffic` takes."""

    model_config = ConfigDict(extra="forbid")
    shares: dict[Number, Percent]
    """Revision -> percent of the requests: of one, or of two of which one serves."""


class Promotion(BaseModel):
    """What `POST /endpoints/{name}/promote` takes."""

    model_config = ConfigDict(extra="forbid")
    revision: Number | None = None
    """The second one of a split when it is not said."""


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router, store = APIRouter(tags=["endpoints"]), control.store

    def told(name: str, target: int) -> Json:
        endpoint, revisions = store.endpoint(name), store.revisions(name)
        percent = next(r.percent for r in revisions if r.number == target)
        traffic = views.traffic_view(endpoint, revisions)
        aim = endpoint.shares[target] if target == endpoint.serving else percent
        return {"endpoint": name, "revision": target, "percent": aim, "traffic": traffic}

    @router.put("/endpoints/{name}/traffic", status_code=202)
    def put_traffic(name: str, body: Shares) -> Json:
        """Divide the requests between two revisions, or give one all of them; one without a share is rolled out."""
        return told(name, traffic.divide(control, name, body.shares))

    @router.post("/endpoints/{name}/promote", status_code=202)
    def post_promote(name: str, body: Promotion | None = None) -> Json:
        """Give a revision all requests, once it has the replicas for them; the other one is drained and retired."""
        return told(name, traffic.promote(control, name, body.revision if body else None))

    @router.get("/endpoints/{name}/revisions/{a}/diff/{b}")
    def get_revision_diff(name: str, a: Number, b: Number) -> Json:
        """What changed from revision `a` to `b`: settings, packages as installed, files with their lines."""
        return comparison.compare(control, name, a, b)

    return router

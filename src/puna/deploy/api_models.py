"""The API's part about published models and training runs: read only."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from fastapi import APIRouter

from puna.deploy.control import Control

Json = dict[str, Any]


def routes(control: Control) -> APIRouter:
    """The handlers."""
    router = APIRouter()

    @router.get("/models", tags=["models"])
    def list_models() -> Json:
        """Every version of every published model."""
        from puna.publish.registry import Registry  # reads folders: only when asked

        return {"items": [plain(version) for version in Registry(control.home).list()]}

    @router.get("/runs", tags=["runs"])
    def list_runs() -> Json:
        """Every training run."""
        from puna.train.record import list_runs as runs  # torch-free, and only when asked

        return {"items": [run_view(run) for run in runs(control.home)]}

    @router.get("/runs/{name}", tags=["runs"])
    def get_run(name: str) -> Json:
        """One training run."""
        from puna.train.record import find_run  # torch-free, and only when asked

        run = find_run(control.home, name)
        more = {"recipe": run.recipe, "metrics": run.metrics()[-2000:], "samples": run.samples}
        values: Json = api_plain(more)
        return run_view(run) | values

    return router


def run_view(run: Any) -> Json:
    """A training run in short."""
    status = run.status
    view = {"name": run.name, "path": str(run.path), "state": status.state, "step": status.step, "steps": status.steps}
    view |= {"started": status.started, "error": status.error, "seconds": run.seconds()}
    return view


def api_plain(value: Any) -> Any:
    """JSON values; what JSON does not know becomes text."""
    return json.loads(json.dumps(value, default=str))


def plain(value: Any) -> Any:
    """A dataclass as plain JSON values; paths become text."""
    values = value.as_dict() if hasattr(value, "as_dict") else dataclasses.asdict(value)
    return json.loads(json.dumps(values, default=str))

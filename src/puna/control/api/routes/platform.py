"""The Inferless platform's two management calls, in its words: a model's settings changed, a model's logs read.

`model_id` is the endpoint's name. Bodies, replies and the key alone in `Authorization` are its own.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict

from puna.control.api.query import moment
from puna.control.api.routing import Right, Routes
from puna.control.domain.api_keys import restrict
from puna.control.domain.records import Key
from puna.control.operations import deploys
from puna.control.operations.context import Control
from puna.control.telemetry import log_lines
from puna.control.telemetry.log_files import View
from puna.control.telemetry.log_lines import LineFilter
from puna.errors import UsageError

Json = dict[str, Any]
MANY, FEW = 1000, 100
"""Lines on a page of logs; `is_less_logs` asks for few."""

# The platform's word -> ours.
SETTINGS = {
    "min_replica": "min_replica",
    "max_replica": "max_replica",
    "scale_down_delay": "scale_down_delay_s",
    "inference_time": "inference_time_s",
    "is_dedicated": "is_dedicated",
    "machine_type": "gpu_type",
    "container_concurrency": "container_concurrency",
}


class ModelSettings(BaseModel):
    """What may be changed; all of it may be left out."""

    model_config = ConfigDict(extra="forbid")
    min_replica: int | None = None
    max_replica: int | None = None
    scale_down_delay: float | None = None
    inference_time: float | None = None
    is_dedicated: bool | None = None
    machine_type: str | None = None
    container_concurrency: int | None = None
    is_input_output_enabled: bool | None = None


class SettingsUpdate(BaseModel):
    """What `settings/update/` takes."""

    model_id: str
    data: ModelSettings


class LogsGet(BaseModel):
    """What `logs/get/` takes."""

    model_id: str
    time_from: str
    time_to: str
    is_less_logs: bool = False
    next_token: str | None = None


def routes(control: Control) -> Routes:
    """The handlers."""
    route = Routes(prefix="/rest/model")

    @route("POST /settings/update", Right.OWN)
    @route("POST /settings/update/", Right.OWN)
    def post_model_settings(body: SettingsUpdate, request: Request) -> Json:
        """Change a model's settings, as the Inferless platform does. No replicas at most means: deactivate."""
        restrict(request.state.key, body.model_id)
        control.store.endpoint(body.model_id)
        _update(control, body.model_id, body.data, request.state.key)
        return {"status": "success", "details": "Model updated successfully"}

    @route("POST /logs/get", Right.OWN)
    @route("POST /logs/get/", Right.OWN)
    def post_model_logs(body: LogsGet, request: Request) -> Json:
        """A model's logs between two times, the newest first; `next_token` of one page asks for the next."""
        restrict(request.state.key, body.model_id)
        control.store.endpoint(body.model_id)
        now = control.clock()
        wanted = LineFilter(
            since=log_lines.iso(moment(body.time_from, now)), until=log_lines.iso(moment(body.time_to, now))
        )
        view = View(control.home, body.model_id, wanted=wanted)
        lines, following = view.page(FEW if body.is_less_logs else MANY, body.next_token or "")
        details = [{"time": line.at, "log": line.text, "stream": line.stream} for line in lines]
        return {"status": "success", "details": details, "next_token": following}

    return route


def _update(control: Control, name: str, data: ModelSettings, key: Key | None) -> None:
    if data.is_input_output_enabled:
        raise UsageError("inputs and outputs of calls are not kept", "leave out `is_input_output_enabled`, or false")
    asked = data.model_dump(exclude_none=True, exclude={"is_input_output_enabled"})
    is_off = asked.get("max_replica") == 0
    if is_off:
        if asked.pop("min_replica", 0) > 0:
            raise UsageError("min_replica must lie in 0 to max_replica")
        del asked["max_replica"]
    changes = {SETTINGS[word]: value for word, value in asked.items()}
    deploys.patch(control, name, changes, key, active=False if is_off else True if "max_replica" in asked else None)

"""The Inferless platform's two management calls, in its words: a model's settings changed, a model's logs read.

`model_id` is the endpoint's name. Bodies, replies and the key alone in `Authorization` are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from puna.config.project import FLAGS, plain
from puna.config.settings import FILE_KEYS
from puna.control.api.query import moment
from puna.control.api.routing import Right, Routes
from puna.control.domain.api_keys import restrict
from puna.control.domain.records import Key
from puna.control.operations import deploys
from puna.control.operations.context import Control
from puna.control.telemetry.log_files import LineFilter, View, iso
from puna.errors import UsageError, nearest

Json = dict[str, Any]
MANY, FEW = 1000, 100
"""Lines on a page of logs; `is_less_logs` asks for few."""

SETTINGS = {**FILE_KEYS, "machine_type": "gpu_type"}
"""The platform's word -> ours."""
NONE = ("0", "0.0")


class SettingsUpdate(BaseModel):
    """The body of `settings/update/`."""

    model_id: str
    data: dict[str, Any]
    """Settings to change, by the platform's words."""


class LogsGet(BaseModel):
    """The body of `logs/get/`."""

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
        wanted = LineFilter(since=iso(moment(body.time_from, now)), until=iso(moment(body.time_to, now)))
        view = View(control.home, body.model_id, wanted=wanted)
        lines, following = view.page(FEW if body.is_less_logs else MANY, body.next_token or "")
        details = [{"time": line.at, "log": line.text, "stream": line.stream} for line in lines]
        return {"status": "success", "details": details, "next_token": following}

    return route


def _update(control: Control, name: str, data: Mapping[str, Any], key: Key | None) -> None:
    asked = {word: value for word, value in data.items() if value is not None}
    if FLAGS.get(str(asked.pop("is_input_output_enabled", "no")).lower(), True):
        raise UsageError("inputs and outputs of calls are not kept", "leave out `is_input_output_enabled`, or false")
    for word in asked:
        if word not in SETTINGS:
            raise UsageError(f"unknown key `data.{word}`", nearest(word, SETTINGS))
    changes = {SETTINGS[word]: plain(SETTINGS[word], value) for word, value in asked.items()}
    is_off = changes.get("max_replica") in NONE
    if is_off:
        if changes.pop("min_replica", "0") not in NONE:
            raise UsageError("min_replica must lie in 0 to max_replica")
        del changes["max_replica"]
    active = False if is_off else True if "max_replica" in changes else None
    deploys.patch(control, name, changes, key, active=active)

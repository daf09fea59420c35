"""The application is called with what its OpenAPI document allows and refuses, as schemathesis makes it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from control.conftest import control_of
from control.place import Place, ending
from puna.control.api.app import create_app
from puna.control.store.store import Store
from puna.home import Home

pytestmark = pytest.mark.process
EXAMPLES = int(os.environ.get("PUNA_FUZZ_EXAMPLES", "6"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@functools.cache
def described() -> dict[str, Any]:
    """Every operation of the application's document by its id, as schemathesis reads it: from an empty application."""
    root = tempfile.mkdtemp(prefix="puna-described-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    home = Home(Path(root) / "home")
    store = Store(f"sqlite:///{home.database}")
    atexit.register(store.close)
    loaded = schemathesis.openapi.from_asgi("/api/openapi.json", create_app(control_of(store, home)))
    every = [found.ok() for found in loaded.get_all_operations()]
    return {found.definition.raw["operationId"]: found for found in every}


@pytest.mark.parametrize("operation_id", ending())
def test_the_application_keeps_to_its_document(place: Place, operation_id: str) -> None:
    operation = described()[operation_id]
    real = place.real(operation.path)
    bounded = settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @bounded
        @given(case=operation.as_strategy(generation_mode=mode), is_real=st.booleans())
        def hold(case: Any, is_real: bool) -> None:
            if is_real:
                case.path_parameters.update({k: v for k, v in real.items() if k in case.path_parameters})
            if isinstance(case.query, dict) and "follow" in case.query:
                case.query["follow"] = False  # logs that are followed do not end
            case.call_and_validate(app=place.app, checks=CHECKS)

        with contextlib.suppress(Unsatisfiable):  # nothing of it can be wrong
            hold()

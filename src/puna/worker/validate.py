"""One dry run of an app, phase by phase, with a report that is on disk at every moment."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable, Dict, List, Optional

from puna.worker import calllog, engine, faults
from puna.worker.runner import App
from puna.worker.schema import Schema
from puna.worker.stream import StreamHandler
from puna.worker.tensors import BadOutput, read_inputs, write_outputs


class Report:
    """The report file; `"unfinished": true` in it means that the process was ended in that phase."""

    def __init__(self, path: str, folder: str) -> None:
        self.path, self.folder = path, folder
        self.fields: Dict[str, Any] = {
            "ok": False, "phase": "schema", "error": "", "line": "", "traceback": "", "schema": None, "outputs": None,
            "timings": {}, "unfinished": True,
        }  # fmt: skip

    def phase(self, name: str, step: Callable[[], Any]) -> Any:
        """Run one phase. Raises what it raises, after the report says so."""
        self.fields["phase"] = name
        self.write()
        begun = time.monotonic()
        try:
            return step()
        except BaseException as error:  # the report's reader sees it, sys.exit in user code included
            self.fields.update(faults.describe(error, self.folder), unfinished=False)
            calllog.note("%s failed:\n%s" % (name, faults.whole(error)))
            raise
        finally:
            self.fields["timings"][name + "_s"] = round(time.monotonic() - begun, 4)
            self.write()

    def write(self) -> None:
        """Write whole or not at all: the reader may come after a kill."""
        temporary = self.path + ".part"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(self.fields, file, default=str)
        os.replace(temporary, self.path)


def validate(app: App, path: str) -> bool:
    """Import, initialize, infer on the examples, finalize; True when all went well. The report says the rest."""
    report = Report(path, app.folder)
    try:
        report.phase("schema", app.read_schema)
        report.fields["schema"] = app.schema.as_json()
        report.phase("import", app.load)
        report.fields["schema"] = app.schema.as_json()  # classes in app.py may have replaced the file's
        report.phase("initialize", app.initialize)
        result = report.phase("infer", lambda: _infer(app, app.schema))
        outputs: List[Dict[str, Any]] = report.phase("output", lambda: write_outputs(result, strict=True))
        report.fields["outputs"] = outputs
        kinds = [{key: o[key] for key in ("name", "datatype", "shape")} for o in outputs]
        report.fields["schema"]["outputs"] = kinds
        _note_engine(report)
        report.phase("bake", engine.bake)
        _finalize(app, report)
    except BaseException:  # noqa: BLE001 - the report has it, and so has the log
        return False
    report.fields.update(ok=True, unfinished=False)
    report.write()
    return True


def _infer(app: App, schema: Schema) -> Any:
    tensors = [{"name": i.name, "data": i.example} for i in schema.inputs if i.example is not None]
    values = read_inputs(schema, {"inputs": tensors}, app.numpy)
    first: List[Dict[str, Any]] = []
    handler: Optional[StreamHandler] = None
    if app.passes_handler:
        handler = StreamHandler(lambda event: first.append(event) if not first else None)
    with calllog.during("validation"):
        result = app.infer(values, handler)
    if handler is None:
        return result
    if not first:
        raise BadOutput("infer ended without a call of send_streamed_output")
    return first[0]


def _note_engine(report: Report) -> None:
    """What OpenAI's paths will find: the gateway lists only endpoints whose app holds an engine."""
    model = engine.current()
    if model is not None:
        told = {"kind": model.kind, "model": model.model, "max_model_len": model.max_model_len}
        report.fields["schema"]["engine"] = told


def _finalize(app: App, report: Report) -> None:
    try:
        report.phase("finalize", app.finalize)
    except BaseException:  # noqa: BLE001 - the platform ignores what finalize raises; the log has it
        report.fields.update(error="", line="", traceback="")

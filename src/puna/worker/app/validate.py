"""One dry run of an app, phase by phase, with a report that is on disk at every moment."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from puna.worker import protocol
from puna.worker.app import calllog, concurrency, faults
from puna.worker.app.runner import App, StreamHandler
from puna.worker.app.schema import AppSchema
from puna.worker.app.tensors import BadOutput, read_inputs, write_outputs
from puna.worker.engines import engine

LOOK_EVERY_S = 0.5


class Report:
    """The report file; `"unfinished": true` in it means that the process was ended in that phase, near that line."""

    def __init__(self, path: str, folder: str) -> None:
        self.path, self.folder, self._lock = path, folder, threading.Lock()
        self.fields: Dict[str, Any] = {
            "ok": False, "phase": "schema", "error": "", "line": "", "traceback": "", "schema": None, "outputs": None,
            "timings": {}, "unfinished": True,
        }  # fmt: skip

    def phase(self, name: str, step: Callable[[], Any]) -> Any:
        """Run one phase. Raises what it raises, after the report says so."""
        self.write(phase=name, line="")
        begun = time.monotonic()
        try:
            return step()
        except BaseException as error:  # the report's reader sees it, sys.exit in user code included
            self.write(unfinished=False, **faults.describe(error, self.folder))
            calllog.note("%s failed:\n%s" % (name, faults.whole(error)))
            raise
        finally:
            self.write(timings=dict(self.fields["timings"], **{name + "_s": round(time.monotonic() - begun, 4)}))

    def write(self, **fields: Any) -> None:
        """Change fields, and write whole or not at all: the reader may come after a kill."""
        with self._lock:
            self.fields.update(fields)
            temporary = self.path + ".part"
            with open(temporary, "wb") as file:
                file.write(protocol.dumps(json.loads(json.dumps(self.fields, default=str))))
            os.replace(temporary, self.path)

    def watch(self) -> None:
        """Keep the line that runs in the report: a run that hangs, or is killed, can say nothing any more."""
        while True:
            time.sleep(LOOK_EVERY_S)
            line = faults.place(self.folder)
            if not self.fields["unfinished"]:
                return
            if line != self.fields["line"]:
                self.write(line=line)


def validate(app: App, path: str) -> bool:
    """Import, initialize, infer on the examples, finalize; True when all went well. The report says the rest."""
    report = Report(path, app.folder)
    threading.Thread(target=report.watch, name="puna-report", daemon=True).start()
    try:
        report.phase("schema", app.read_schema)
        report.fields["schema"] = app.schema.as_json()
        report.phase("import", app.load)
        report.fields["schema"] = app.schema.as_json()  # classes in app.py may have replaced the file's
        report.phase("initialize", app.initialize)
        os.environ.pop("PUNA_PROVED", None)  # here it is found out
        found = concurrency.verdict(app)
        report.fields["schema"]["concurrency"] = found.as_json()
        result = report.phase("infer", lambda: _infer(app, app.schema))
        outputs: List[Dict[str, Any]] = report.phase("output", lambda: write_outputs(result, True, app.outputs))
        report.fields["outputs"] = outputs
        kinds = [{key: o[key] for key in ("name", "datatype", "shape")} for o in outputs]
        report.fields["schema"]["outputs"] = kinds
        model = engine.current()
        if model is not None:  # for OpenAI's paths: the gateway lists only endpoints whose app holds an engine
            found_engine = {"kind": model.kind, "model": model.model, "max_model_len": model.max_model_len}
            report.fields["schema"]["engine"] = found_engine
        report.phase("bake", engine.bake)
        _finalize(app, report)
        report.write(ok=True, unfinished=False, line="")
    except BaseException as error:  # noqa: BLE001 - the report has it, and so has the log
        if report.fields["unfinished"]:
            calllog.note("the report could not be written:\n" + faults.whole(error))
        return False
    return True


def _infer(app: App, schema: AppSchema) -> Any:
    tensors = [{"name": i.name, "data": i.sample()} for i in schema.inputs if i.required or i.example is not None]
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


def _finalize(app: App, report: Report) -> None:
    try:
        report.phase("finalize", app.finalize)
    except BaseException:  # noqa: BLE001 - the platform ignores what finalize raises; the log has it
        report.write(error="", line="", traceback="", unfinished=True)

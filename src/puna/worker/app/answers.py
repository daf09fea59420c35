"""One call from request body to reply: marshal, run `infer`, marshal back, and say what went wrong."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Optional

from puna.worker import protocol
from puna.worker.app import calllog, faults, scope, tensors
from puna.worker.app.runner import App, StreamHandler
from puna.worker.app.tensors import BadOutput, BadRequest
from puna.worker.call_table import WorkerCall
from puna.worker.openai import completions
from puna.worker.openai.parameters import Refusal


def answer(app: App, call: WorkerCall, emit: Callable[[WorkerCall, bytes], None]) -> bytes:
    """Run one call and return its last frame; `emit` sends the frames before it. Never raises."""
    path = call.head.get("path")
    request = scope.RequestScope()
    call.cancel = request.cancel
    if call.is_answered:
        request.cancel()
    with calllog.during(call.trace), scope.entered(request):
        try:
            if path in completions.PATHS:
                return completions.answer(call, emit)
            return _stream(app, call, emit) if path == "stream" else _infer(app, call)
        except Refusal as refusal:
            return failure(call, refusal.status, refusal.message, refusal)
        except BadRequest as error:
            return failure(call, 400, str(error))
        except BadOutput as error:
            calllog.note(str(error), call.trace)
            return failure(call, 500, str(error))
        except protocol.TooLongError as error:
            calllog.note("the reply is too long: %s" % error, call.trace)
            return failure(call, 500, "the reply is too long: %s" % error)
        except scope.Cancelled:
            return protocol.encode(protocol.END, call.request_id, {})
        except BaseException as error:  # noqa: BLE001 - the caller sees HTTP 500, the log all of it
            calllog.note("infer raised:\n" + faults.whole(error), call.trace)
            return failure(call, 500, faults.describe(error, app.folder)["traceback"])


def failure(call: WorkerCall, status: int, message: str, refusal: Optional[Refusal] = None) -> bytes:
    """The frame that ends a call with an error, in the form that suits its path and what was sent before."""
    if call.stream_begun:
        return protocol.encode(protocol.END, call.request_id, {"error": message})
    if call.head.get("path") in completions.PATHS:
        refusal = refusal or Refusal(message, status=status)
        return protocol.encode_reply(call.request_id, status, refusal.as_json())
    return protocol.encode_reply(call.request_id, status, json.dumps({"error": message}).encode())


def _infer(app: App, call: WorkerCall) -> bytes:
    if app.passes_handler:
        raise BadRequest("this app streams its output: POST to .../generate_stream")
    document = _document(call)
    wanted = tensors.BinaryOutputs(document) if tensors.names_outputs(document) else None
    if wanted is not None:
        wanted.check(app.outputs)  # before infer runs, where the app's outputs are known by then
    result = _run(app, call, tensors.read_inputs(app.schema, document, app.numpy), None)
    reply: Dict[str, Any] = _model(call)
    if isinstance(document, dict) and isinstance(document.get("id"), str):
        reply["id"] = document["id"]  # KServe v2: the request's id comes back
    reply["outputs"] = outputs = tensors.write_outputs(result, declared=app.outputs)
    if wanted is not None:
        reply["outputs"], rest = wanted.split(wanted.chosen(outputs))
        if rest or any(tensors.BINARY_SIZE in o.get("parameters", ()) for o in reply["outputs"]):
            return protocol.encode_binary_reply(call.request_id, 200, *tensors.binary_body(reply, rest))
    return protocol.encode_reply(call.request_id, 200, protocol.dumps(reply))


def _stream(app: App, call: WorkerCall, emit: Callable[[WorkerCall, bytes], None]) -> bytes:
    model = _model(call)

    def send(event: Dict[str, Any]) -> None:
        if call.is_answered:
            raise scope.Cancelled  # else an app with a loop of its own goes on to its end, and holds the place
        if not call.stream_begun:
            call.stream_begun = True
            emit(call, protocol.encode(protocol.BEGIN, call.request_id, {}))
        emit(call, protocol.encode(protocol.CHUNK, call.request_id, dict(model, **event)))

    handler = StreamHandler(send)
    result = _run(app, call, tensors.read_parameters(app.schema, _document(call), app.numpy), handler)
    if not app.passes_handler:
        send(tensors.write_event(result))  # an app that does not stream answers with one event, as Triton does
    if not call.stream_begun:
        emit(call, protocol.encode(protocol.BEGIN, call.request_id, {}))
    return protocol.encode(protocol.END, call.request_id, {})


def _run(app: App, call: WorkerCall, values: Dict[str, Any], handler: Optional[StreamHandler]) -> Any:
    call.body = b""
    request = scope.current()
    return app.infer(values, handler, request.on_cancel if request else None)


def _model(call: WorkerCall) -> Dict[str, Any]:
    head = call.head
    return {"model_name": str(head.get("model_name", "")), "model_version": str(head.get("model_version", "1"))}


def _document(call: WorkerCall) -> Any:
    """The request's JSON, with the values of its binary tensors."""
    body, json_bytes = call.body, int(call.head.get("json_bytes") or 0)
    head, rest = (body[:json_bytes], body[json_bytes:]) if json_bytes else (body, b"")
    try:
        document = json.loads(head or b"{}")
    except (ValueError, RecursionError) as error:
        if b'"binary_data_size"' in body and not json_bytes:
            raise BadRequest(
                "tensors' bytes follow the JSON, and the header Inference-Header-Content-Length, which says where, is "
                "missing"
            ) from None
        raise BadRequest("the body is not JSON: %s" % error) from None
    return tensors.with_binary(document, rest) if json_bytes else document

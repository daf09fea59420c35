"""The last frame of a call, whatever `infer` raises, and what of it the log gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puna.worker import protocol
from puna.worker.app import answers, scope
from puna.worker.app.runner import App
from puna.worker.app.tensors import BadOutput, BadRequest
from puna.worker.call_table import WorkerCall

BODY = json.dumps({"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}).encode()


class Model:
    """An app's class that raises, or waits for its client to go."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def infer(self, inputs: dict[str, str]) -> dict[str, str]:
        raise self.error


def answered(folder: Path, error: BaseException) -> bytes:
    """The last frame of a call whose `infer` raises `error`."""
    (folder / "input_schema.py").write_text(
        'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
    )
    app = App(str(folder))
    app.read_schema()
    app.model = Model(error)
    call = WorkerCall((1, 7), {"path": "infer"}, BODY, 1e18, lambda data: None)
    return answers.answer(app, call, lambda call, frame: None)


def test_a_call_whose_client_left_ends_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert answered(tmp_path, scope.Cancelled()) == protocol.encode(protocol.END, 7, {})
    assert capfd.readouterr().err == "", "nothing went wrong"


@pytest.mark.parametrize(
    ("error", "status", "said", "logged"),
    [
        (BadRequest("input 'prompt' is no text"), 400, "input 'prompt' is no text", ""),
        (BadOutput("infer must return a dict"), 500, "infer must return a dict", "infer must return a dict"),
        (protocol.TooLongError("5 GB"), 500, "the reply is too long: 5 GB", "the reply is too long: 5 GB"),
        (ValueError("bad luck"), 500, "ValueError: bad luck", "infer raised:"),
        (SystemExit(3), 500, "SystemExit: 3", "infer raised:"),
    ],
)
def test_what_infer_raises_is_the_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], error: BaseException, status: int, said: str, logged: str
) -> None:
    (frame,) = protocol.Decoder().feed(answered(tmp_path, error))
    kind, number, payload = frame
    found, body = protocol.decode_reply(payload)
    assert (kind, number, found) == (protocol.REPLY, 7, status) and said in json.loads(body)["error"]
    log = capfd.readouterr().err
    assert log.startswith(f"puna: [7] {logged}") if logged else log == ""

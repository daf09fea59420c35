"""A worker over its Unix socket: states, calls, deadlines, cancelling, streams, draining, and the call log."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.worker import protocol
from worker import wire

pytestmark = pytest.mark.process
Write = Callable[..., Path]
Start = Callable[..., Any]

SLEEPY = """
    import asyncio, atexit, time
    atexit.register(print, "its exit function ran")
    class InferlessPythonModel:
        def infer(self, inputs):
            words = inputs["prompt"].split()
            open("begun-" + words[0], "w").close()
            time.sleep(float(words[1]))
            print("done", words[0])
            return {"text": words[0]}
        def finalize(self):
            print("finalized")
"""


def wait_for(path: Path) -> None:
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.005)


def test_a_call_gets_its_reply_under_every_python(app: Write, start: Start, python: str) -> None:
    worker = start(app(), python=python)
    client = worker.ready()
    client.send(5, {"prompt": "hi"}, model_version="3")
    assert client.next()[:2] == (protocol.STARTED, 5)
    request_id, status, body = client.reply()
    output = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["you said hi"]}
    assert (request_id, status) == (5, 200)
    assert body == {"model_name": "m", "model_version": "3", "outputs": [output]}
    assert "[t5] asked hi\n" in worker.text()


def test_the_socket_is_the_owners_alone_and_answers_ping(app: Write, start: Start) -> None:
    worker = start(app())
    client = worker.client()
    assert stat.S_IMODE(os.stat(worker.path).st_mode) == 0o600
    client.socket.sendall(protocol.encode(protocol.PING, 9, b"x"))
    assert client.next(protocol.HELLO, protocol.READY) == (protocol.PONG, 9, b"x")


def test_hello_comes_before_initialize_ends_and_ready_after(app: Write, start: Start) -> None:
    source = """
        import time
        class InferlessPythonModel:
            def initialize(self): time.sleep(0.4)
            def infer(self, inputs): return {"a": 1}
    """
    worker = start(app(source))
    client = worker.client()
    assert client.until(protocol.HELLO)["state"] == "starting"
    ready = client.until(protocol.READY)
    assert ready["state"] == "ready" and ready["timings"]["initialize_s"] >= 0.4 and ready["concurrency"] == 1
    assert [i["name"] for i in ready["schema"]["inputs"]] == ["prompt"]
    assert worker.client().until(protocol.HELLO)["state"] == "ready"


def test_failed_initialize_is_told_and_ends_the_worker(app: Write, start: Start) -> None:
    source = "class InferlessPythonModel:\n def initialize(self): raise OSError('no GPU')\n def infer(self, i): pass\n"
    worker = start(app(source))
    failed = worker.client().until(protocol.FAILED)
    assert "initialize failed: OSError: no GPU (app.py:2:" in failed["message"]
    assert "app.py" in failed["traceback"] and "puna" not in failed["traceback"]
    assert worker.process.wait(5) == 1 and "OSError: no GPU" in worker.text()


def test_bad_requests_are_400_and_app_errors_500_with_the_traceback(app: Write, start: Start) -> None:
    source = """
        import sys
        class InferlessPythonModel:
            def infer(self, inputs):
                if inputs["prompt"] == "exit": sys.exit(1)
                if inputs["prompt"] == "none": return None
                raise ValueError("bad luck")
    """
    worker = start(app(source))
    client = worker.ready()
    assert client.call(b"{") == (400, {"error": client_error("the body is not JSON")})
    binary = (
        b'{"inputs":[{"name":"prompt","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}}]}\x02\xff'
    )
    status, body = client.call(binary)
    assert status == 400 and "Inference-Header-Content-Length" in body["error"]
    status, body = client.call({"other": "x"})
    assert status == 400 and "unknown input 'other'" in body["error"]
    status, body = client.call({"prompt": "x"})
    assert status == 500 and "ValueError: bad luck" in body["error"] and 'app.py", line 7' in body["error"]
    assert "ValueError: bad luck" in worker.text()
    assert client.call({"prompt": "exit"})[0] == 500
    status, body = client.call({"prompt": "none"})
    assert status == 500 and "it returned None" in body["error"]


def client_error(start: str) -> Any:
    """Equal to any text that begins so."""

    class Begins(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and other.startswith(self)

        __hash__ = str.__hash__

    return Begins(start)


def test_numbers_arrive_as_numpy_scalars_where_there_is_numpy(app: Write, start: Start) -> None:
    schema = "INPUT_SCHEMA = {'n': {'datatype': 'FP32', 'shape': [1], 'example': [1]}}"
    source = """
        class InferlessPythonModel:
            def infer(self, inputs): return {"kind": type(inputs["n"]).__name__, "twice": inputs["n"] * 2}
    """
    status, body = start(app(source, schema)).ready().call({"n": 3})
    assert status == 200 and [o["data"] for o in body["outputs"]] == [["float32"], [6.0]]
    assert body["outputs"][1]["datatype"] == "FP32"


def test_one_call_at_a_time_by_default_and_many_when_asked(app: Write, start: Start) -> None:
    for options, least, most in ((), 0.8, 9.0), (("--concurrency", "4"), 0.2, 0.75):
        client = start(app(SLEEPY), *options).ready()
        begun = time.monotonic()
        for number in range(4):
            client.send(number, {"prompt": f"{number} 0.2"})
        replies = {client.reply()[0] for _ in range(4)}
        assert replies == {0, 1, 2, 3} and least <= time.monotonic() - begun <= most


def test_a_call_past_its_deadline_is_dropped_before_infer(app: Write, start: Start) -> None:
    folder = app(SLEEPY)
    client = start(folder).ready()
    client.send(1, {"prompt": "first 0.5"})
    client.send(2, {"prompt": "second 0"}, deadline_s=0.1)
    assert client.reply()[:2] == (2, 504)
    assert client.reply()[:2] == (1, 200)
    client.send(3, {"prompt": "third 0"})
    assert client.reply()[:2] == (3, 200) and not (folder / "begun-second").exists()


def test_an_overrun_gets_504_and_the_worker_lives_when_infer_returns_in_its_grace(app: Write, start: Start) -> None:
    client = start(app(SLEEPY)).ready()
    client.send(1, {"prompt": "slow 0.6"}, deadline_s=0.2)
    begun = time.monotonic()
    assert client.reply()[:2] == (1, 504)
    # The place is free only now, and whoever counts places is told.
    assert client.next()[:2] == (protocol.END, 1) and time.monotonic() - begun >= 0.55
    client.send(2, {"prompt": "next 0"})
    assert client.reply()[:2] == (2, 200)


def test_an_overrun_past_its_grace_ends_the_worker_after_the_others(app: Write, start: Start) -> None:
    folder = app(SLEEPY)
    worker = start(folder, "--concurrency", "2", "--overrun-grace-s", "0.2")
    client = worker.ready()
    client.send(1, {"prompt": "stuck 60"}, deadline_s=0.1)
    client.send(2, {"prompt": "fine 0.8"})
    assert client.reply()[:2] == (1, 504)
    time.sleep(0.4)
    client.send(3, {"prompt": "late 0"})
    assert client.reply()[:2] == (3, 503)
    assert client.reply()[:2] == (2, 200)
    assert worker.process.wait(5) == 70 and "this worker ends" in worker.text()


def test_an_async_overrun_is_cancelled_and_the_worker_goes_on(app: Write, start: Start) -> None:
    source = """
        import asyncio
        class InferlessPythonModel:
            async def infer(self, inputs):
                print("here")
                await asyncio.sleep(float(inputs["prompt"]))
                return {"text": "x"}
    """
    worker = start(app(source), "--overrun-grace-s", "0.3")
    client = worker.ready()
    assert client.call({"prompt": "60"}, deadline_s=0.1)[0] == 504
    time.sleep(0.5)
    assert client.call({"prompt": "0"})[0] == 200 and "[t1] here\n" in worker.text()


def test_a_cancelled_call_that_has_not_begun_never_begins(app: Write, start: Start) -> None:
    folder = app(SLEEPY)
    client = start(folder).ready()
    client.send(1, {"prompt": "first 0.3"})
    client.send(2, {"prompt": "second 0"})
    client.socket.sendall(protocol.encode(protocol.CANCEL, 2))
    client.send(3, {"prompt": "third 0"})
    assert [client.reply()[0] for _ in range(2)] == [1, 3]
    assert not (folder / "begun-second").exists()


def test_a_cancelled_call_that_has_begun_ends_without_a_reply(app: Write, start: Start) -> None:
    folder = app(SLEEPY)
    client = start(folder).ready()
    client.send(1, {"prompt": "first 0.3"})
    wait_for(folder / "begun-first")
    client.socket.sendall(protocol.encode(protocol.CANCEL, 1))
    assert client.next(protocol.STARTED)[:2] == (protocol.END, 1)


def test_a_client_that_goes_away_cancels_its_calls(app: Write, start: Start) -> None:
    folder = app(SLEEPY)
    worker = start(folder)
    client = worker.ready()
    client.send(1, {"prompt": "first 0.3"})
    client.send(2, {"prompt": "second 0"})
    wait_for(folder / "begun-first")
    client.socket.close()
    assert worker.ready().call({"prompt": "other 0"})[0] == 200
    assert not (folder / "begun-second").exists()


STREAMING = """
    class InferlessPythonModel:
        def infer(self, inputs, handler):
            for word in inputs["prompt"].split():
                if word == "boom": raise ValueError("boom")
                handler.send_streamed_output({"OUT": word})
            handler.finalise_streamed_output()
"""


def events(client: Any, inputs: bytes) -> list[tuple[str, bytes]]:
    client.send(1, inputs, path="stream")
    found: list[tuple[str, bytes]] = []
    while not found or found[-1][0] not in ("END", "REPLY"):
        kind, _, payload = client.next(protocol.STARTED)
        found.append((wire.NAMES[kind], payload))
    return found


def test_a_stream_is_begin_chunks_end(app: Write, start: Start) -> None:
    schema = (
        "IS_STREAMING_OUTPUT = True\nINPUT_SCHEMA = {'prompt': {'datatype': 'STRING', 'shape': [1], 'example': ['a']}}"
    )
    client = start(app(STREAMING, schema)).ready()
    found = events(client, b'{"parameters": {"prompt": "a b"}}')
    assert [kind for kind, _ in found] == ["BEGIN", "CHUNK", "CHUNK", "END"]
    assert found[1][1] == b'{"model_name":"m","model_version":"1","OUT":"a"}' and found[3][1] == b"{}"
    found = events(client, b'{"parameters": {"prompt": "a boom"}}')
    assert [kind for kind, _ in found] == ["BEGIN", "CHUNK", "END"] and b"ValueError: boom" in found[-1][1]
    kind, payload = events(client, b'{"parameters": {"prompt": "boom"}}')[0]
    assert kind == "REPLY" and protocol.decode_reply(payload)[0] == 500
    assert client.call({"prompt": "a"})[0] == 400


LOOPS = {
    "plain": """
        def infer(self, inputs, handler):
            for number in range(3000):
                handler.send_streamed_output({"OUT": number})
                time.sleep(0.01)
            open("went-on", "w").close()
    """,
    "that catches every Exception": """
        def infer(self, inputs, handler):
            for number in range(3000):
                try:
                    handler.send_streamed_output({"OUT": number})
                except Exception:
                    pass
                time.sleep(0.01)
            open("went-on", "w").close()
    """,
    "over a generator": """
        def numbers(self):
            try:
                for number in range(3000):
                    yield number
                    time.sleep(0.01)
            finally:
                open("closed", "w").close()
        def infer(self, inputs, handler):
            for number in self.numbers():
                handler.send_streamed_output({"OUT": number})
            open("went-on", "w").close()
    """,
    "async that waits": """
        async def infer(self, inputs, handler):
            for number in range(3000):
                await handler.send_streamed_output({"OUT": number})
                await asyncio.sleep(0.01)
            open("went-on", "w").close()
    """,
    "async that never lets go": """
        async def infer(self, inputs, handler):
            for number in range(3000):
                await handler.send_streamed_output({"OUT": number})
                time.sleep(0.01)
            open("went-on", "w").close()
    """,
    "over an async generator": """
        async def numbers(self):
            for number in range(3000):
                yield number
                await asyncio.sleep(0.01)
        async def infer(self, inputs, handler):
            async for number in self.numbers():
                handler.send_streamed_output({"OUT": number})
            open("went-on", "w").close()
    """,
}


@pytest.mark.parametrize("how", LOOPS)
def test_a_client_that_leaves_a_stream_ends_the_apps_own_loop_and_frees_its_place(
    app: Write, start: Start, how: str, tmp_path: Path
) -> None:
    folder = app("    import asyncio, time\n    class InferlessPythonModel:" + LOOPS[how])
    client = start(folder, "--concurrency", "1").ready()
    client.send(1, {"prompt": "x"}, path="stream", deadline_s=60)
    client.until(protocol.CHUNK)
    client.socket.sendall(protocol.encode(protocol.CANCEL, 1))
    assert client.next(protocol.STARTED, protocol.CHUNK)[:2] == (protocol.END, 1)
    client.send(2, {"prompt": "x"}, path="stream", deadline_s=60)  # the one place is free
    while client.next(protocol.STARTED)[:2] != (protocol.CHUNK, 2):
        pass
    assert not (folder / "went-on").exists()
    assert how != "over a generator" or (folder / "closed").exists()


NOT_FINITE = {
    "plain": """
    class InferlessPythonModel:
        def infer(self, inputs):
            nan, inf = float("nan"), float("inf")
            return {"out": [1.0, nan, inf], "deep": [[-inf, 2.0]], "one": nan, "said": "NaN"}
    """,
    "numpy": """
    import numpy as np
    class InferlessPythonModel:
        def infer(self, inputs):
            nan, inf = np.nan, np.inf
            return {"out": [np.float32(1), np.float64(nan), inf], "deep": [np.array([-inf, 2.0])],
                    "one": np.float16(nan), "said": "NaN"}
    """,
    "typed": """
    import inferless
    from pydantic import BaseModel
    from typing import List, Any
    @inferless.request
    class Asked(BaseModel):
        prompt: str = "x"
    @inferless.response
    class Told(BaseModel):
        out: List[float]
        deep: Any
        one: float
        said: str
    class InferlessPythonModel:
        def infer(self, request: Asked) -> Told:
            nan, inf = float("nan"), float("inf")
            return Told(out=[1.0, nan, inf], deep=[[-inf, 2.0]], one=nan, said="NaN")
    """,
}


@pytest.mark.parametrize("path", ["infer", "stream"])
@pytest.mark.parametrize("how", NOT_FINITE)
def test_numbers_that_json_has_no_words_for_are_null_in_every_reply(
    app: Write, start: Start, how: str, path: str
) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    client = start(app(NOT_FINITE[how])).ready()
    client.send(1, {"prompt": "x"}, path=path)
    kind, _, payload = client.next(protocol.STARTED, protocol.BEGIN)
    body = protocol.decode_reply(payload)[1] if kind == protocol.REPLY else payload
    told = json.loads(body, parse_constant=refuse)
    if path == "infer":
        told = {o["name"]: o["data"] for o in told["outputs"]}
        assert told == {"out": [1.0, None, None], "deep": [None, 2.0], "one": [None], "said": ["NaN"]}
    else:
        assert (told["out"], told["deep"], told["one"]) == ([1.0, None, None], [None, 2.0], None)


def test_an_app_that_does_not_stream_answers_a_stream_with_one_event(app: Write, start: Start) -> None:
    found = events(start(app()).ready(), b'{"prompt": "hi"}')
    assert [kind for kind, _ in found] == ["BEGIN", "CHUNK", "END"] and b'"text":"you said hi"' in found[1][1]


@pytest.mark.parametrize("how", ["frame", "signal"])
def test_shutdown_answers_what_it_has_then_finalizes(app: Write, start: Start, how: str) -> None:
    folder = app(SLEEPY)
    worker = start(folder)
    client = worker.ready()
    client.send(1, {"prompt": "first 0.4"})
    wait_for(folder / "begun-first")
    if how == "frame":
        client.socket.sendall(protocol.encode(protocol.SHUTDOWN))
    else:
        os.kill(worker.process.pid, signal.SIGTERM)
        time.sleep(0.1)
    client.send(2, {"prompt": "second 0"})
    assert client.reply()[:2] == (2, 503)
    assert client.reply()[:2] == (1, 200)
    assert worker.process.wait(5) == 0 and not os.path.exists(worker.path)
    assert "finalized" in worker.text() and "its exit function ran" in worker.text().partition("finalized")[2]


def test_a_terminated_child_of_the_app_does_not_end_the_worker(app: Write, start: Start) -> None:
    source = """
        import multiprocessing, time, warnings
        warnings.simplefilter("ignore")
        class InferlessPythonModel:
            def infer(self, inputs):
                child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
                child.start()
                time.sleep(0.2)
                child.terminate()
                child.join(5)
                return {"code": str(child.exitcode)}
    """
    client = start(app(source)).ready()
    for _ in range(2):
        assert client.call({"prompt": "x"})[1]["outputs"][0]["data"] == ["-15"]


def test_drain_answers_drained_when_the_last_reply_is_out(app: Write, start: Start) -> None:
    client = start(app(SLEEPY)).ready()
    client.send(1, {"prompt": "first 0.2"})
    client.socket.sendall(protocol.encode(protocol.DRAIN, 4))
    assert client.reply()[:2] == (1, 200)
    assert client.next()[:2] == (protocol.DRAINED, 4)


def test_rubbish_on_a_connection_ends_that_connection_only(app: Write, start: Start) -> None:
    worker = start(app())
    good, bad = worker.ready(), worker.ready()
    bad.socket.sendall(b"\xff" * 64)
    assert bad.next() == (0, 0, b"")
    assert good.call({"prompt": "hi"})[0] == 200


def test_the_log_keeps_each_requests_lines_apart(app: Write, start: Start) -> None:
    source = """
        import os, sys, time
        class InferlessPythonModel:
            def initialize(self):
                print("no", end=" "); print("tag")
            def infer(self, inputs):
                for part in inputs["prompt"].split():
                    print(part, end="-", flush=True)
                    time.sleep(0.02)
                sys.stderr.write(" 10%\\r 90%\\r100%\\n")
                os.system("echo from a child")
                return {"a": 1}
    """
    worker = start(app(source), "--concurrency", "2")
    client = worker.ready()
    client.send(1, {"prompt": "a a a"})
    client.send(2, {"prompt": "b b b"})
    client.reply(), client.reply()
    text = worker.text()
    for line in ("no tag\n", "[t1] a-a-a-\n", "[t2] b-b-b-\n", "[t1] 100%\n", "from a child\n"):
        assert line in text


def test_a_worker_whose_parent_goes_takes_its_descendants_along(app: Write, start: Start) -> None:
    source = """
        import subprocess, time
        class InferlessPythonModel:
            def initialize(self):
                code = "import subprocess; subprocess.Popen(['setsid', 'sleep', '97'])"
                import sys; subprocess.run([sys.executable, "-c", code])
                subprocess.Popen(["sleep", "97"])
            def infer(self, inputs): time.sleep(60)
    """
    worker = start(app(source))
    client = worker.ready()
    client.send(1, {"prompt": "x"})
    end = time.monotonic() + 5
    while len(children := sleepers(worker.process.pid)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(children) == 2
    os.close(worker.lifeline)
    worker.lifeline = os.open(os.devnull, os.O_RDONLY)
    worker.process.wait(2)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children if is_alive(pid))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def sleepers(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        if int(fields[1]) == parent and name == "sleep":
            found.append(int(entry.name))
    return found


def test_a_reply_that_is_too_long_to_be_sent_fails_at_once_with_the_reason_and_the_worker_goes_on(
    app: Write, start: Start
) -> None:
    source = """
        class InferlessPythonModel:
            def infer(self, inputs):
                return {"text": "x" * (int(inputs["prompt"]) << 20)}
    """
    worker = start(app(source))
    client = worker.ready()
    client.socket.settimeout(60)  # a gigabyte is written, beside others
    client.send(1, {"prompt": "257"}, deadline_s=60.0)
    request_id, status, body = client.reply()
    assert (request_id, status) == (1, 500)
    assert "the reply is too long" in body["error"] and f"at most {protocol.MAX_PAYLOAD_BYTES - 9}" in body["error"]
    client.send(2, {"prompt": "0"})
    assert client.reply()[:2] == (2, 200)
    assert "the reply is too long" in worker.text()

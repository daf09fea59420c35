"""Apps in every shape that was seen in the wild, validated and served by real processes under several Pythons."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.config.runtime import parse_text
from puna.errors import BuildError
from puna.home import Home
from puna.packaging import environment
from puna.worker import protocol
from worker import corpus, wire
from worker.conftest import find_python

pytestmark = pytest.mark.process

# The stand-in for `inferless` and the package itself; pydantic 1 and 2; the oldest Python, the platform's, and newer.
ENVIRONMENTS = {
    "3.8 with pydantic 1": ("3.8", ["pydantic<2", "numpy"]),
    "3.11 with inferless itself": ("3.11", ["inferless==0.2.15", "pydantic>=2"]),
    "3.12 with inferless itself": ("3.12", ["inferless==0.2.15", "pydantic>=2"]),
    "3.13 with pydantic 2": ("3.13", ["pydantic>=2", "numpy"]),
}


@pytest.fixture(scope="module", params=ENVIRONMENTS)
def app_python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an app's environment, in which fastapi is broken besides."""
    minor, packages = ENVIRONMENTS[request.param]
    spec = parse_text(json.dumps({"build": {"python_version": minor, "python_packages": packages}}))
    lines: list[str] = []
    try:
        built = environment.build(spec, Home(tmp_path_factory.mktemp("home")), lines.append, cancelled=lambda: False)
    except BuildError as error:
        pytest.skip(f"no environment {request.param}: {error}")
    (site,) = built.python.parent.parent.glob("lib/python*/site-packages")
    (site / "fastapi").mkdir()
    (site / "fastapi" / "__init__.py").write_text("raise RuntimeError('this fastapi is broken')")
    return str(built.python)


@pytest.mark.parametrize("name", corpus.NAMES)
def test_an_app_of_the_corpus_runs_unchanged(
    name: str,
    app_python: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    validated: Callable[..., dict[str, Any]],
    start: Callable[..., Any],
) -> None:
    app = corpus.read(name)
    for key, value in app.env.items():
        monkeypatch.setenv(key, value)
    folder = app.write(tmp_path / "app")
    told = validated(folder, app_python)
    assert told["ok"], told
    worker = start(folder, python=app_python)
    client = worker.ready()
    for call in app.calls:
        assert answer(client, call) == (call.status, call.expected), call.inputs
    client.socket.sendall(protocol.encode(protocol.SHUTDOWN))
    assert worker.process.wait(10) == 0, worker.text()
    for line in app.log:
        assert line in worker.text()


def answer(client: Any, call: corpus.CorpusCall) -> tuple[int, Any]:
    """Status, and outputs by name or events or as much of the error as is expected."""
    client.send(1, call.body(), path="stream" if call.streams else "infer")
    if call.streams and call.status == 200:
        return 200, list(events(client))
    _, status, body = client.reply()
    if status != 200:
        # An exception's text is the end of its traceback; all other errors are sentences.
        found = call.expected if call.expected in body["error"] else body["error"]
        return status, found
    return status, {o["name"]: [o["datatype"], o["shape"], o["data"]] for o in body["outputs"]}


def events(client: Any) -> Any:
    """The outputs of each event until the end."""
    while True:
        kind, _, payload = client.next(protocol.STARTED, protocol.BEGIN)
        if kind == protocol.END:
            assert payload in (b"", b"{}"), payload
            return
        assert kind == protocol.CHUNK, (wire.NAMES.get(kind), payload)
        event = json.loads(payload)
        assert (event.pop("model_name"), event.pop("model_version")) == ("m", "1")
        yield event


def test_the_corpus_is_large_enough_to_be_one() -> None:
    assert len(corpus.NAMES) >= 30


def test_the_pythons_that_are_found_are_what_they_are_taken_for() -> None:
    found = {minor: find_python(minor) for minor in ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")}
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for minor, path in found.items():
        assert not path or subprocess.check_output([path, "-c", code], text=True).strip() == minor
    if sum(map(bool, found.values())) < 2:
        pytest.skip("ONE CPYTHON ONLY: the worker is tried under no other; `uv python install 3.8` gives one")

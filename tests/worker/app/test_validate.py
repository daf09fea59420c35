"""`validate` on good apps and on each way to break one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process
Write = Callable[..., Path]
Validated = Callable[..., dict[str, Any]]


def test_a_good_app_passes_under_every_python(app: Write, validated: Validated, python: str) -> None:
    told = validated(app(), python)
    assert told["ok"], told
    assert told["outputs"] == [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["you said What is AI?"]}]
    assert told["schema"]["outputs"] == [{"name": "text", "datatype": "BYTES", "shape": [1]}]
    assert "bye" in told["log"] and "[validation] asked What is AI?" in told["log"]


def test_user_files_named_like_the_library_do_no_harm(app: Write, validated: Validated, python: str) -> None:
    boom = "raise RuntimeError('the app file won over the standard library')"
    names = ("json", "types", "socket", "threading", "traceback", "inspect", "signal", "struct", "asyncio", "queue")
    files = {f"{name}_py": boom for name in names}
    source = """
        import server, helper.words
        class InferlessPythonModel:
            async def infer(self, inputs):
                return {"text": server.NAME + helper.words.WORD}
    """
    folder = app(source, server_py="NAME = 'mine'", **files)
    (folder / "helper").mkdir()
    (folder / "helper" / "words.py").write_text("WORD = '!'")
    told = validated(folder, python)
    assert told["ok"], told
    assert told["outputs"][0]["data"] == ["mine!"]


BROKEN: dict[str, tuple[str | None, str, str, str]] = {  # name -> source, phase, part of the error, part of the line
    "syntax": ("x = (\nclass A:\n", "import", "SyntaxError", "app.py:"),
    "no class": ("class Model: pass", "import", "no class InferlessPythonModel; it defines Model", ""),
    "no infer": ("class InferlessPythonModel: pass", "import", "no method infer", ""),
    "name error": ("import os\nx = undefined_name", "import", "name 'undefined_name' is not defined", "app.py:2: x ="),
    "missing package": ("import no_such_package_here", "import", "No module named 'no_such_package_here'", "app.py:1"),
    "no app.py": (None, "import", "app.py is missing", ""),
    "sys.exit": ("import sys\nsys.exit(3)", "import", "SystemExit", "app.py:2: sys.exit(3)"),
    "initialize": (
        "class InferlessPythonModel:\n  def initialize(self):\n    raise ValueError('no weights')\n"
        "  def infer(self, inputs): return {}",
        "initialize",
        "ValueError: no weights",
        "app.py:3: raise ValueError('no weights')",
    ),
    "infer": (
        "class InferlessPythonModel:\n  def infer(self, inputs):\n    return {'a': inputs['nope']}",
        "infer",
        "KeyError: 'nope'",
        "app.py:3: return {'a': inputs['nope']}",
    ),
    "not a dict": ("class InferlessPythonModel:\n  def infer(self, inputs): return 'hi'", "output", "a str: 'hi'", ""),
    "tuple": (
        "class InferlessPythonModel:\n  def infer(self, inputs): return {'X': (1,)}",
        "output",
        "Output X is of type dictionary or tuple which is currently not supported. You can try json.dumps(X)",
        "",
    ),
    "empty list": (
        "class InferlessPythonModel:\n  def infer(self, inputs): return {'X': []}",
        "output",
        "Output X is empty list which cannot be used to infer the data type.",
        "",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_app_is_told_with_its_phase_and_line(name: str, app: Write, validated: Validated) -> None:
    source, phase, error, line = BROKEN[name]
    told = validated(app(source))
    assert not told["ok"] and told["phase"] == phase
    assert error in told["error"] and line in told["line"]
    assert "puna/worker" not in told["traceback"] and "importlib" not in told["traceback"]
    if line:
        assert "app.py" in told["traceback"]


def test_a_broken_schema_is_told(app: Write, validated: Validated) -> None:
    told = validated(app(schema="INPUT_SCHEMA = {'X': {'datatype': 'INT8', 'required': True, 'shape': [1]}}"))
    assert told["phase"] == "schema" and "example not specified for input --> X" in told["error"]
    told = validated(app(schema="INPUT_SCHEMA = {\n'X': nope}"))
    assert told["phase"] == "schema" and told["line"] == "input_schema.py:2: 'X': nope}"


def test_what_finalize_raises_is_logged_and_forgiven(app: Write, validated: Validated) -> None:
    source = """
        class InferlessPythonModel:
            def infer(self, inputs): return {"a": 1}
            def finalize(self, args): raise TypeError("odd")
    """
    told = validated(app(source))
    assert told["ok"] and told["error"] == "" and "TypeError: odd" in told["log"]


def test_signatures_seen_in_the_wild_are_called_as_written(app: Write, validated: Validated) -> None:
    source = """
        import inferless
        app = inferless.Cls(gpu="A100")
        class InferlessPythonModel:
            @app.load
            def initialize(self, context=None): self.context = context
            @inferless.method(gpu="T4")
            async def infer(self, inputs): return {"a": str(self.context)}
            def finalize(self, *args): print("args", args)
    """
    told = validated(app(source))
    assert told["ok"], told
    assert told["outputs"][0]["data"] == ["None"] and "args ()" in told["log"]


def test_a_streaming_app_is_validated_by_its_first_event(app: Write, validated: Validated) -> None:
    source = """
        class InferlessPythonModel:
            async def infer(self, inputs, stream_output_handler):
                for word in ("a", "b"):
                    await stream_output_handler.send_streamed_output({"OUT": word})
                stream_output_handler.finalise_streamed_output()
    """
    told = validated(app(source))
    assert told["ok"], told
    assert told["outputs"] == [{"name": "OUT", "datatype": "BYTES", "shape": [1], "data": ["a"]}]


def test_the_working_directory_is_the_apps(app: Write, validated: Validated) -> None:
    source = """
        class InferlessPythonModel:
            def infer(self, inputs):
                with open("made.txt", "w") as file:
                    file.write("x")
                return {"a": open("input_schema.py").read()[:5]}
    """
    folder = app(source)
    assert validated(folder)["ok"] and (folder / "made.txt").exists()


def test_a_run_that_is_killed_leaves_a_report_of_its_phase(app: Write, pyz: Path, tmp_path: Path) -> None:
    source = """
        import time
        class InferlessPythonModel:
            def initialize(self):
                open("started", "w").close()
                time.sleep(60)
            def infer(self, inputs): return {}
    """
    folder, report = app(source), tmp_path / "report.json"
    argv = [sys.executable, "-I", str(pyz), "validate", "--app", str(folder), "--report", str(report)]
    process = subprocess.Popen(argv)
    end = time.monotonic() + 10
    while not (folder / "started").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    told = json.loads(report.read_text())
    assert told["phase"] == "initialize" and told["unfinished"] is True


TYPED = """
    import inferless
    from typing import List, Optional
    from pydantic import BaseModel, Field

    @inferless.request
    class Ask(BaseModel):
        prompt: str = Field(default="a dog")
        steps: int
        scale: Optional[float] = 7.5
        seed: Optional[int] = None
        sizes: List[int] = [1, 2]

    @inferless.response
    class Told(BaseModel):
        text: str = Field(default="nothing")
        seen: List[float] = [0.5]

    class InferlessPythonModel:
        def infer(self, asked: Ask) -> Told:
            return Told(text="%s %d %s %s" % (asked.prompt, asked.steps, asked.scale, asked.seed))
"""


def test_pydantic_classes_are_the_schema_and_the_values(app: Write, validated: Validated) -> None:
    pytest.importorskip("pydantic")
    told = validated(app(TYPED))
    assert told["ok"], told
    keys = ("name", "datatype", "shape", "required", "example")
    assert [tuple(i[k] for k in keys) for i in told["schema"]["inputs"]] == [
        ("prompt", "STRING", [1], True, ["a dog"]),
        ("steps", "INT32", [1], True, [1]),
        ("scale", "FP64", [1], False, [7.5]),
        ("seed", "INT32", [1], False, None),
        ("sizes", "INT32", [-1], True, [1, 2]),
    ]
    assert [(o["name"], o["data"]) for o in told["outputs"]] == [("text", ["a dog 1 7.5 None"]), ("seen", [0.5])]


def test_a_pydantic_field_of_another_type_is_named(app: Write, validated: Validated) -> None:
    pytest.importorskip("pydantic")
    told = validated(app(TYPED.replace("steps: int", "steps: dict")))
    assert told["phase"] == "import" and told["error"].startswith("Data type - unknown - not supported")
    assert "input --> steps is dict" in told["error"]

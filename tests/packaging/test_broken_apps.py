"""Broken apps, each in a guarded process as a build runs it: told with line and next step, and never hanging."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from puna.backends import local
from puna.backends.base import Launch
from puna.errors import AppError
from puna.home import Home
from puna.packaging import validation

pytestmark = pytest.mark.process

SCHEMA = (
    'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]}}\n'
)
CLASS = "class InferlessPythonModel:\n    def infer(self, inputs): return {'a': 1}\n"


@dataclass(frozen=True)
class Broken:
    """An app, and pieces of message, hint and detail."""

    app: str
    message: tuple[str, ...]
    hint: str
    detail: str
    limit_s: float = 30


BROKEN = {
    "syntax error": Broken(
        "x = (\n" + CLASS, ("app.py could not be imported: SyntaxError", "(app.py:"), "correct the line", "app.py"
    ),
    "no class": Broken(
        "class Model: pass\n",
        ("app.py could not be imported: app.py has no class InferlessPythonModel; it defines Model",),
        "correct the line",
        "InferlessPythonModel",
    ),
    "name error at import": Broken(
        CLASS + "x = undefined_name\n",
        (
            "app.py could not be imported: NameError: name 'undefined_name' is not defined",
            "(app.py:3: x = undefined_name)",
        ),
        "correct the line",
        'app.py", line 3',
    ),
    "missing package": Broken(
        "import no_such_package\n" + CLASS,
        ("No module named 'no_such_package' (app.py:1",),
        "add the package of `no_such_package` to python_packages",
        'app.py", line 1',
    ),
    "model run at import, without end": Broken(
        "import time\n" + CLASS + "def run():\n    while True: time.sleep(0.01)\nrun()\n",
        ("app.py could not be imported: it did not end within 3 s (app.py:5: while True: time.sleep(0.01))",),
        "belongs in initialize or infer",
        "",
        3,
    ),
    "initialize without end": Broken(
        "import threading\nclass InferlessPythonModel:\n    def initialize(self):\n        print('waiting for godot')\n"
        "        threading.Event().wait()\n    def infer(self, inputs): return {'a': 1}\n",
        ("initialize failed: it did not end within 3 s (app.py:5: threading.Event().wait())",),
        "the line is where it was last seen",
        "waiting for godot",
        3,
    ),
    "no dictionary": Broken(
        "class InferlessPythonModel:\n    def infer(self, inputs): return 'hi'\n",
        ("what infer returned cannot be sent: infer must return a dict of outputs, it returned a str: 'hi'",),
        "end infer with a dictionary",
        "",
    ),
    "a tuple": Broken(
        "class InferlessPythonModel:\n    def infer(self, inputs): return {'X': (1, 2)}\n",
        (
            "what infer returned cannot be sent: Output X is of type dictionary or tuple which is currently not "
            "supported. You can try json.dumps(X)",
        ),
        "",
        "",
    ),
    "an empty list": Broken(
        "class InferlessPythonModel:\n    def infer(self, inputs): return {'X': []}\n",
        (
            "Output X is empty list which cannot be used to infer the data type. Please provide a non-empty list as "
            "output.",
        ),
        "",
        "",
    ),
    "a wrong key": Broken(
        "class InferlessPythonModel:\n    def infer(self, inputs):\n        return {'a': inputs['promt']}\n",
        (
            "infer failed on the example of input_schema.py: KeyError: 'promt'",
            "(app.py:3: return {'a': inputs['promt']})",
        ),
        "is `promt` an input of input_schema.py?",
        'app.py", line 3',
    ),
    "a crash in C": Broken(
        "import ctypes\nclass InferlessPythonModel:\n    def initialize(self):\n        ctypes.string_at(0)\n"
        "    def infer(self, inputs): return {'a': 1}\n",
        ("initialize failed: killed by SIGSEGV",),
        "a library crashed",
        'app.py", line 4 in initialize',
    ),
    "memory without end": Broken(
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\nclass InferlessPythonModel:\n"
        "    def infer(self, inputs):\n        return {'a': b'x' * (1 << 33)}\n",
        ("infer failed on the example of input_schema.py: MemoryError (app.py:5: return {'a': b'x' * (1 << 33)})",),
        "use a machine with more memory",
        'app.py", line 5',
    ),
    "killed for its memory": Broken(
        "import os\nclass InferlessPythonModel:\n    def initialize(self): os.kill(os.getpid(), 9)\n"
        "    def infer(self, inputs): return {'a': 1}\n",
        ("initialize failed: killed by",),
        "use a machine with more memory",
        "",
    ),
    "exit behind Python's back": Broken(
        "import os\n" + CLASS + "print('going')\nos._exit(0)\n",
        ("app.py could not be imported: ended with exit code 0",),
        "os._exit",
        "going",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_app_fails_validation_with_all_that_is_known(name: str, tmp_path: Path) -> None:
    broken, folder = BROKEN[name], tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").write_text(broken.app)
    (folder / "input_schema.py").write_text(SCHEMA)
    begun = time.monotonic()
    error = fails(folder, tmp_path, broken.limit_s)
    assert time.monotonic() - begun < 60  # never hangs: the limit, and room for a busy machine
    for piece in broken.message:
        assert piece in error.message
    assert broken.hint in error.hint and error.hint
    assert broken.detail in error.detail
    if "SIGSEGV" not in error.message:  # the crash handler shows every frame
        assert "puna/worker" not in error.detail


def fails(folder: Path, tmp_path: Path, limit_s: float) -> AppError:
    log, report = tmp_path / "app.log", tmp_path / "report.json"
    env = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    launch = Launch("broken", Path(sys.executable), folder, tmp_path / "s", log, env)
    local.validate(launch, Home(tmp_path / "home"), report, limit_s)
    with pytest.raises(AppError) as caught:
        validation.read(report, log)
    return caught.value


def test_a_schema_that_is_wrong_is_told_in_the_platforms_words(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(CLASS)
    no_list = "shape not specified as a python list for input --> X"
    wrong = {
        "{'X': {'datatype': 'INT', 'shape': [1], 'example': [1]}}": "Data type INT not supported for input --> X",
        "{'X': {'shape': [1], 'example': [1]}}": "Data type not specified for input --> X",
        "{'X': {'datatype': 'INT8', 'shape': 1, 'example': [1]}}": no_list,
        "{'X': {'datatype': 'INT8', 'required': True, 'example': [1]}}": "shape not specified for input --> X",
        "{'X': {'datatype': 'INT8', 'required': True, 'shape': [1]}}": "example not specified for input --> X",
    }
    for text, words in wrong.items():
        (tmp_path / "input_schema.py").write_text(textwrap.dedent(f"INPUT_SCHEMA = {text}\n"))
        error = fails(tmp_path, tmp_path, 30)
        assert error.message.startswith(f"input_schema.py could not be read: {words}"), error.message

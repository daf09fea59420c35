"""What a zygote imports ahead of its forks, what it leaves to them, and when it refuses to fork at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.worker import protocol
from puna.worker.zygote import preload
from worker.conftest import Client, Worker

App = Callable[..., Path]


def steps(source: str) -> tuple[list[tuple[str, str]], int]:
    plan = preload.read(textwrap.dedent(source).encode())
    return [(name, more[0] if kind == "env" else "") for kind, name, more in plan.steps], plan.stopped_at


def test_top_level_imports_are_done_in_order_and_those_of_methods_are_not() -> None:
    found, stopped_at = steps("""
        '''An app.'''
        import json, torch.nn as nn
        from vllm import LLM
        try:
            import flash_attn
        except ImportError:
            import slow_attn
        LIMIT = 3
        class InferlessPythonModel:
            def initialize(self):
                import transformers
    """)
    assert [name for name, _ in found] == ["json", "torch.nn", "vllm", "flash_attn"] and stopped_at == 0


def test_variables_that_the_app_sets_before_an_import_are_set_for_it() -> None:
    os.environ.pop("PUNA_TEST_UNSET", None)
    found, _ = steps("""
        import os
        os.environ["A"] = "1"
        os.environ["B"] = os.getenv("A")
        os.environ["C"] = os.environ.get("PUNA_TEST_UNSET", "else")
        import huggingface_hub
    """)
    assert found == [("os", ""), ("A", "1"), ("B", "1"), ("C", "else"), ("huggingface_hub", "")]


@pytest.mark.parametrize(
    "statement",
    [
        "sys.path.append('lib')",
        "os.environ['A'] = unknown()",
        "os.environ['A'] = os.getenv('PUNA_TEST_UNSET')",
        "X = compute()",
        "@decorated\ndef f(): pass",
        "class A:\n    x = compute()",
        "for x in y: pass",
        "if x:\n    import later",
    ],
)
def test_a_statement_that_may_change_an_import_ends_what_is_done_ahead(statement: str) -> None:
    assert steps(f"import json\n{statement}\nimport torch") == ([("json", "")], 2)


@pytest.mark.parametrize("statement", ["log = logging.getLogger(__name__)", "f = lambda: compute()", "D = torch.half"])
def test_a_statement_that_changes_nothing_does_not(statement: str) -> None:
    assert steps(f"import json\n{statement}\nimport torch") == ([("json", ""), ("torch", "")], 0)


def test_vllms_own_modules_wait_when_the_app_sets_its_variables_later() -> None:
    later = "import vllm\nclass A:\n    def initialize(self): os.environ['VLLM_USE_X'] = '1'"
    assert preload.read(later.encode()).sets_vllm
    assert not preload.read(b"import os\nos.environ['VLLM_USE_X'] = '1'\nimport vllm").sets_vllm


def test_an_app_that_cannot_be_parsed_has_nothing_to_import() -> None:
    assert steps("import json\ndef") == ([], 0)


# ---- processes ------------------------------------------------------------------------------------------------------


class Zygote(Worker):
    """A zygote without a guard."""

    def __init__(self, python: str, pyz: Path, folder: Path, path: str, env: dict[str, str]) -> None:
        self.path, self.log = path, folder.parent / "zygote.log"
        read, self.lifeline = os.pipe()
        self.clients: list[Client] = []
        argv = [python, "-I", str(pyz), "zygote", "--socket", path, "--app", str(folder), "--parent-fd", str(read)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, pass_fds=(read,), env=env)
        os.close(read)

    def said(self) -> tuple[int, Any]:
        """The kind and the JSON of its first word."""
        client = self.client()
        kind, _, payload = client.next()
        return kind, protocol.json.loads(payload or b"null")


@pytest.fixture
def zygote(pyz: Path) -> Iterator[Callable[..., Zygote]]:
    made: list[Zygote] = []
    with tempfile.TemporaryDirectory(prefix="puna") as sockets:

        def begin(folder: Path, python: str = sys.executable, **env: str) -> Zygote:
            made.append(Zygote(python, pyz, folder, f"{sockets}/z{len(made)}", {"PATH": os.environ["PATH"], **env}))
            return made[-1]

        yield begin
        for one in made:
            one.end()


@pytest.mark.process
def test_it_imports_what_the_app_imports_and_nothing_of_the_apps_own(
    zygote: Callable[..., Zygote], app: App, python: str
) -> None:
    folder = app("import csv, email.message\nimport mine\nfrom no_such_library import x\n", mine_py="print('MINE')\n")
    made = zygote(folder, python)
    kind, said = made.said()
    assert kind == protocol.READY and {"csv", "email.message"} <= set(said["imports"])
    assert "MINE" not in made.text() and "`import no_such_library` failed, left to each start" in made.text()


@pytest.mark.process
@pytest.mark.parametrize(
    ("library", "why"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='busy').start()",
         "busy"),
        ("import _thread, time\n_thread.start_new_thread(time.sleep, (60,))", "without a name"),
        ("import subprocess\nsubprocess.Popen(['sleep', '60'])", "started a process"),
        ("import sys, types\nsys.modules['torch'] = types.SimpleNamespace(cuda=types.SimpleNamespace("
         "is_initialized=lambda: True))", "initialised CUDA"),
        ("import ctypes\nctypes.CDLL(None).prctl(15, b'cuda-EvtHandlr', 0, 0, 0)", "cuda-EvtHandlr"),
        ("import tomb", "the app's own `tomb`"),
    ],
    ids=["thread", "bare thread", "process", "torch.cuda", "native thread", "hidden module"],
)  # fmt: skip
def test_it_refuses_to_fork_and_says_why(
    zygote: Callable[..., Zygote], app: App, python: str, tmp_path: Path, library: str, why: str
) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    (libraries / "unforkable.py").write_text(library)
    (libraries / "tomb.py").write_text("")
    made = zygote(
        app("import unforkable\n", tomb_py="print('the app has one too')\n"), python, PYTHONPATH=str(libraries)
    )
    kind, said = made.said()
    assert kind == protocol.FAILED and why in said["message"]
    assert made.process.wait(10) == 3 and why in made.text()


@pytest.mark.process
def test_a_thread_that_ends_while_threads_are_listed_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir("/proc/self/task")
    monkeypatch.setattr(preload.os, "listdir", lambda path: ["4194305", *listed])
    named = Path(f"/proc/self/task/{listed[0]}/comm").read_text().strip()
    assert named in preload.native_threads((named,)) and list(preload.native_threads(("no such",))) == []


def test_it_ends_with_its_guard(zygote: Callable[..., Zygote], app: App) -> None:
    made = zygote(app("import json\n"))
    assert made.said()[0] == protocol.READY
    os.close(made.lifeline)
    assert made.process.wait(10) != 0

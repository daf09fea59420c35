"""The local backend beyond the contract: one guarded validation run, and how fast a replica starts."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backends.replicas import FAMILY, processes_with, wait_for
from load import load_factor
from puna.backends.base import Launch, Phase
from puna.backends.local import LocalBackend, validate
from puna.home import Home

pytestmark = pytest.mark.process
Make = Callable[..., Launch]


def test_a_validation_writes_its_report(launch: Make, tmp_path: Path) -> None:
    validate(launch(), Home(tmp_path), tmp_path / "report.json", 20)
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["ok"] and told["outputs"][0]["data"] == ["you said hi"] and "unfinished" not in told


def test_a_validation_that_never_ends_is_ended_and_says_where(launch: Make, tmp_path: Path) -> None:
    mark = f"{os.getpid()}{time.monotonic_ns() % 10**6}"
    source = f"MARK = {mark!r}\n" + textwrap.dedent(FAMILY).replace('return {"text": "x"}', "while True: pass")
    for limit_s in (0.8, 3.0, 12.0, 48.0):  # a busy machine may need longer than the limit to get as far as infer
        begun = time.monotonic()
        validate(launch(source=source), Home(tmp_path), tmp_path / "report.json", limit_s)
        assert time.monotonic() - begun < 2 * limit_s + 2 * load_factor() and not processes_with(mark)
        report = json.loads((tmp_path / "report.json").read_text())
        assert not report["ok"] and report["error"] == f"it did not end within {limit_s:g} s"
        if report["phase"] == "infer":
            break
    assert report["phase"] == "infer"


def test_a_validation_that_crashes_says_how(launch: Make, tmp_path: Path) -> None:
    source = "import os; print('so far', flush=True); os.abort()"
    validate(
        launch(source=source),
        Home(tmp_path),
        tmp_path / "report.json",
        20,
    )
    told = json.loads((tmp_path / "report.json").read_text())
    assert (told["phase"], told["error"]) == ("import", "killed by SIGABRT")
    assert "so far" in told["traceback"]


def test_a_validation_can_be_cancelled(launch: Make, tmp_path: Path) -> None:
    end = time.monotonic() + 0.3
    source = "import time; time.sleep(60)"
    validate(
        launch(source=source),
        Home(tmp_path),
        tmp_path / "report.json",
        30,
        cancelled=lambda: time.monotonic() > end,
    )
    assert json.loads((tmp_path / "report.json").read_text())["error"] == "it was cancelled"
    assert time.monotonic() - end < 2 * load_factor()


def test_a_second_validation_compiles_nothing_of_the_worker(launch: Make, tmp_path: Path) -> None:
    def compiled() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "worker").rglob("*.pyc")}

    validate(launch("v1"), Home(tmp_path), tmp_path / "report.json", 20 * load_factor())
    first = compiled()
    validate(launch("v2"), Home(tmp_path), tmp_path / "report.json", 20 * load_factor())
    assert first and compiled() == first


def test_a_no_op_app_is_ready_soon(local: LocalBackend, launch: Make) -> None:
    best = 9.0
    for number in range(3):  # the machine may be busy: the best of three
        begun = time.monotonic()
        local.start(launch(f"r{number}"))
        wait_for(local, Phase.READY, f"r{number}")
        best = min(best, time.monotonic() - begun)
    assert best < 0.8, f"{best:.2f} s"  # 0.13 s on an idle machine


def test_forget_removes_the_working_copy(local: LocalBackend, launch: Make, home: Home) -> None:
    made = launch()
    local.start(made)
    wait_for(local, Phase.READY)
    local.stop("r1", 5)
    wait_for(local, Phase.EXITED)
    local.forget("r1")
    assert not made.app.exists() and list(home.sockets.glob("r1*")) == []


def test_a_socket_that_is_deleted_while_it_is_looked_at_is_no_death(
    local: LocalBackend, launch: Make, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.start(launch())
    before = wait_for(local, Phase.READY)
    ask = local._ask

    def asked(replica_id: str, command: dict[str, object]) -> object:
        home.guard_socket(replica_id).unlink(missing_ok=True)
        return ask(replica_id, command)

    monkeypatch.setattr(local, "_ask", asked)
    assert [(one.pid, one.phase) for one in local.list()] == [(before.pid, Phase.READY)]
    local.forget("r1")
    monkeypatch.undo()
    again = wait_for(local, Phase.READY)
    assert again.pid == before.pid


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_an_id_that_is_no_file_name_is_refused(local: LocalBackend, launch: Make, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a replica's id"):
        local.start(replace(launch("r1"), replica_id=name))


def test_replicas_on_a_cpu_are_told_of_fewer_threads_the_more_there_are(local: LocalBackend, launch: Make) -> None:
    for number, name in enumerate(("r1", "r2"), 1):
        local.start(launch(name))
        pid = wait_for(local, Phase.READY, name, 30).pid
        told = dict(item.partition("=")[::2] for item in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        assert told["OMP_WAIT_POLICY"] == "PASSIVE"
        assert told["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // number))

"""Which changes a source can suffer, and that the driver tries them in a copy and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from mutate_plugin import owners  # noqa: E402
from mutations import Mutant, mutants  # noqa: E402

MODULE = '''"""Text with 1 < 2 in it."""

import os
from contextlib import suppress

LIMIT = 20


class Box:
    size: int = 3

    def take(self, count: int, whole: bool = False) -> str | None:
        if count < self.size and not whole:
            LOG.info("taken %d", 1 + 1)
            return "some"
        with self.lock, suppress(OSError):
            os.fsync(count)
        try:
            self.left -= count
        except ValueError as error:
            raise KeyError(f"{count + 1} is too much") from error
        return self.name or "é" if self.left else None
'''


def changes(source: str = MODULE) -> dict[str, list[tuple[str, str]]]:
    """By operator, the changed lines before and after."""
    found: dict[str, list[tuple[str, str]]] = {}
    for mutant in mutants("m.py", source.encode()):
        lines = mutant.diff(source.encode()).splitlines()[2:]
        before, after = ([line[1:].strip() for line in lines if line[0] == sign] for sign in "-+")
        found.setdefault(mutant.operator, []).append((before[0], after[0]))
    return found


def test_every_operator_changes_what_it_says() -> None:
    found = changes()
    test, last = "if count < self.size and not whole:", 'return self.name or "é" if self.left else None'
    assert found["boundary"] == [(test, test.replace("<", "<="))]
    assert found["comparison negated"] == [(test, test.replace("<", ">="))]
    assert found["and/or"] == [(test, test.replace("and", "or")), (last, last.replace(" or ", " and "))]
    assert found["not removed"] == [(test, test.replace("not whole", "(whole)"))]
    assert (test, "if not (count < self.size and not whole):") in found["condition negated"]
    assert found["default removed"] == [(last, "return (self.name) if self.left else None")]
    assert found["choice"] == [(last, 'return (self.name or "é")'), (last, "return (None)")]
    assert found["lock removed"][0][1] == "with __import__('contextlib').nullcontext(), suppress(OSError):"
    assert found["arithmetic"] == [("self.left -= count", "self.left += count")]
    assert found["error not caught"] == [("except ValueError as error:", "except ZeroDivisionError as error:")]
    assert [before for before, _ in found["statement removed"]] == [
        "os.fsync(count)",
        'raise KeyError(f"{count + 1} is too much") from error',
    ]
    assert [after for _, after in found["return value"]] == ["return None", "return None"]
    constants = [
        "LIMIT = (20 * 2)",
        "size: int = (3 + 1)",
        "def take(self, count: int, whole: bool = True) -> str | None:",
    ]
    assert [after for _, after in found["constant"]] == constants


def test_a_mutant_knows_its_function_and_lines_belong_to_the_same_ones(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(MODULE)
    owner = owners(file)
    for mutant in mutants("m.py", MODULE.encode()):
        if mutant.operator != "constant":
            assert mutant.function == owner[mutant.line] == "Box.take"
    assert {m.function for m in mutants("m.py", MODULE.encode())} == {"", "Box", "Box.take"}


def test_every_mutant_of_a_real_module_is_python_and_differs_in_one_place() -> None:
    source = (ROOT / "src/puna/serve/dispatch/routing.py").read_bytes()
    found = mutants("routing.py", source)
    assert len(found) > 30 and len(set(found)) == len(found)
    for mutant in found:
        changed = mutant.apply(source)
        compile(changed, "routing.py", "exec")
        assert changed[: mutant.start] == source[: mutant.start] and changed.endswith(source[mutant.end :])


# ---- the driver --------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the driver's copies lie: short, for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="m"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(scratch: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "mutate.py"), *words]
    env = os.environ | {"TMPDIR": str(scratch)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checkout() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (ROOT / "src").rglob("*.py")}


def of_copies(scratch: Path) -> list[str]:
    """Processes whose interpreter lies in a copy."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"{scratch}/puna-m-" in words:
            found.append(words)
    return found


@pytest.mark.process
def test_it_tells_a_change_that_a_test_sees_from_one_that_none_sees(scratch: Path) -> None:
    before, out = checkout(), scratch / "found.json"
    words = ["--modules", "puna.worker.send_buffer", "--sample", "4", "--workers", "1", "--quick", "--json", str(out)]
    with start(scratch, *words) as process:
        said, errors = process.communicate()
    results = json.loads(out.read_text())
    assert len(results) == 4, errors
    for result in results:
        mutant = Mutant(**result["mutant"])
        assert result["outcome"] in ("killed", "survived", "timeout") and result["diff"].count("\n") >= 4
        assert ("::" in result["by"]) is (result["outcome"] == "killed"), result
        assert (mutant.name in said) is (result["outcome"] == "survived")
    assert any(result["outcome"] == "killed" for result in results)
    assert "all" in said and checkout() == before
    assert [path.name for path in scratch.iterdir()] == ["found.json"] and of_copies(scratch) == []


@pytest.mark.process
def test_an_interrupt_ends_it_at_once_and_leaves_nothing(scratch: Path) -> None:
    before = checkout()
    with start(scratch, "--modules", "puna.worker.send_buffer", "--sample", "50", "--workers", "1") as process:
        while not any("pytest" in words for words in of_copies(scratch)) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate()
    assert process.returncode == 130 and "stopped" in errors and "all" in said
    assert list(scratch.iterdir()) == [] and of_copies(scratch) == [] and checkout() == before

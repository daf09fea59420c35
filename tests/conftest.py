"""What is skipped, and why; what tests cost: `PUNA_TEST_CPU=25` prints the 25 that take most processor time."""

import contextlib
import gc
import itertools
import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

# Images of containers often say that no bytecode is to be written. Then each of the tests' hundreds of processes would
# compile all that it imports once more, which is most of what it does.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A walk for every 700 new objects, as is the default, is a third of collecting: what torch brings stays to the end.
gc.set_threshold(20_000, 50, 100)

if not shutil.which("nvidia-smi"):
    os.environ["TRITON_INTERPRET"] = "1"  # the kernels' tests run in Triton's interpreter; read when it is imported

COUNT = int(os.environ.get("PUNA_TEST_CPU", "0"))
CPU_S = "cpu_s"
_cpu_s: dict[str, float] = defaultdict(float)
_wall_s: dict[str, float] = defaultdict(float)
_before_s = 0.0


def _among(marks: set[str]) -> Callable[..., bool]:
    return lambda name, /, **_: name in marks


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a file none of whose tests `-m` can select, by the marks that its text names: many load torch."""
    asked = config.option.markexpr
    if not asked or not collection_path.name.startswith("test_") or collection_path.suffix != ".py":
        return None
    text, words = collection_path.read_text(), set(re.findall(r"\w+", asked))
    marks = re.compile(r"\bmark\.(\w+)")
    of_all = {mark for line in re.findall(r"^pytestmark = (\[[^]]*]|.*)", text, re.M) for mark in marks.findall(line)}
    of_some = set(marks.findall(text)) & words - of_all
    subsets = itertools.chain.from_iterable(itertools.combinations(of_some, n) for n in range(len(of_some) + 1))
    expression = Expression.compile(asked)
    return None if any(expression.evaluate(_among({*some, *of_all})) for some in subsets) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip with a reason rather than leave out in silence; where files run side by side, the longest begin first."""
    engine = pytest.mark.skip(reason="installs an engine of 3 GB; run: make engine")
    gpu = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("engine") and not os.environ.get("PUNA_ENGINE_TESTS"):
            item.add_marker(engine)
        if item.get_closest_marker("gpu") and not shutil.which("nvidia-smi"):
            item.add_marker(gpu)
    items.sort(key=lambda item: not item.nodeid.startswith("tests/stories/"))


def pytest_collection_finish() -> None:
    """Leave modules and items, which stay to the end, out of every later walk of the garbage collector."""
    gc.collect()
    gc.freeze()


def spent_s() -> float:
    """Processor time of this process and of all that it has started, whether they live or have been waited for."""
    import psutil  # costs each worker a tenth of a second, and only who asks for COUNT needs it

    total_s, me = 0.0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system + times.children_user + times.children_system
    return total_s


def pytest_runtest_logstart() -> None:
    """Here a test begins."""
    global _before_s
    if COUNT:
        _before_s = spent_s()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put a phase's processor time into its report, which also comes from another process under xdist."""
    global _before_s
    report = yield
    if COUNT:
        now_s = spent_s()
        report.user_properties = [*report.user_properties, (CPU_S, max(now_s - _before_s, 0.0))]
        _before_s = now_s
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add a phase's times to its test's. Who was killed with his parent has taken what he spent with him."""
    spent = dict(report.user_properties).get(CPU_S, 0.0)
    _cpu_s[report.nodeid] += float(str(spent))
    _wall_s[report.nodeid] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print files and tests by processor time, when asked."""
    if not COUNT:
        return
    files: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for test in _cpu_s:
        files[test.split("::")[0]][0] += _cpu_s[test]
        files[test.split("::")[0]][1] += _wall_s[test]
    terminalreporter.section("processor and wall time, with all processes that tests start")
    for name, (cpu_s, wall_s) in sorted(files.items(), key=lambda item: -item[1][0]):
        terminalreporter.write_line(f"{cpu_s:8.2f}s cpu {wall_s:8.2f}s wall  {name}")
    terminalreporter.section(f"the {COUNT} tests that take most processor time")
    for name in sorted(_cpu_s, key=lambda name: -_cpu_s[name])[:COUNT]:
        terminalreporter.write_line(f"{_cpu_s[name]:8.2f}s cpu {_wall_s[name]:8.2f}s wall  {name}")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which paths were handed to fsync, by the names that they had just then."""
    seen: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen

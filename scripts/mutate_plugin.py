"""The pytest side of `make mutate`: runs given tests in their order, and notes which functions each one enters."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WANTED = os.environ.get("PUNA_MUTATE_TESTS")  # a JSON list of test ids: these alone, in this order
MAP = os.environ.get("PUNA_MUTATE_MAP")  # where the map goes: file of the source -> function -> tests
SOURCE = os.environ.get("PUNA_MUTATE_SOURCE", "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not WANTED:
        return
    order = {name: n for n, name in enumerate(json.loads(Path(WANTED).read_text()))}
    chosen = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in order])
    items[:] = chosen


class Mapper:
    """Measures lines by test and reduces them to functions, which keep their names when lines move."""

    def __init__(self) -> None:
        import coverage

        self.coverage: Any = coverage.Coverage(data_file=None, source=[SOURCE], config_file=False, messages=False)
        self.coverage.start()
        self.coverage.switch_context("import")
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("between")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        covered: dict[str, dict[str, list[str]]] = {}
        for path in data.measured_files():
            owner = owners(Path(path))
            found: dict[str, set[str]] = {}
            for line, contexts in data.contexts_by_lineno(path).items():
                if line in owner:
                    found.setdefault(owner[line], set()).update(set(contexts) & set(self.seconds))
            name = Path(path).relative_to(SOURCE).as_posix()
            covered[name] = {function: sorted(tests) for function, tests in found.items() if tests}
        made = {"seconds": self.seconds, "failed": sorted(self.failed), "covered": covered}
        assert MAP is not None
        Path(MAP).write_text(json.dumps(made))


def owners(path: Path) -> dict[int, str]:
    """The lines inside functions, each with the qualified name of the innermost one; a `def` line is its parent's."""
    owner: dict[int, str] = {}

    def walk(node: ast.AST, scope: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*scope, child.name)
                if not isinstance(child, ast.ClassDef):
                    lines = range(child.body[0].lineno, (child.end_lineno or 0) + 1)
                    owner.update(dict.fromkeys(lines, ".".join(inner)))
            walk(child, inner)

    walk(ast.parse(path.read_bytes()), ())
    return owner


def pytest_configure(config: pytest.Config) -> None:
    if MAP:
        config.pluginmanager.register(Mapper(), "puna-mutate-mapper")

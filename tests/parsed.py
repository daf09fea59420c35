"""The product's and the tests' Python files, each read and parsed once a process: what the gates look at."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
TESTS = ROOT / "tests"
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


@functools.cache
def product() -> list[Path]:
    return sorted((SRC / "puna").rglob("*.py"))


@functools.cache
def everything() -> list[Path]:
    return product() + sorted(TESTS.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    with _no_collection():
        return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a file's syntax tree."""
    with _no_collection():
        return list(ast.walk(tree(path)))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from walking all the trees that are kept, for every tree that comes to them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def functions(path: Path) -> list[tuple[str, int]]:
    """Each function's name and how many lines it has."""
    found = [n for n in nodes(path) if isinstance(n, Function)]
    return [(n.name, (n.end_lineno or n.lineno) - n.lineno + 1) for n in found]


def said(path: Path) -> str:
    """Name a file as a reader finds it."""
    return path.relative_to(ROOT).as_posix()

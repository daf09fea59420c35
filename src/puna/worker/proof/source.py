"""The syntax tree of a function that is there, and what a node of it says."""

from __future__ import annotations

import ast
import os
import types
from typing import Any, Dict, Iterator, List, Set, Tuple

from puna.worker.app import faults

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SCOPES = (*FUNCTIONS, ast.ClassDef)
CODE = (ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom, ast.Lambda, ast.ListComp, ast.GeneratorExp)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class NotProved(Exception):
    """Calls may meet, or what is read is not understood; the text says what the line does."""

    def __init__(self, what: str, node: Any = None) -> None:
        super().__init__(what)
        self.what, self.node = what, node


class Sources:
    """The app's files as trees; a tree counts only for the very code that Python makes of its text."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        self._inside: Dict[str, bool] = {}
        self._folders: Dict[str, str] = {}
        self._files: Dict[str, Tuple[List[types.CodeType], List[Any]]] = {}

    def is_inside(self, path: str) -> bool:
        """A file of the app's, wherever the working directory is."""
        if path not in self._inside:
            self._inside[path] = os.path.isabs(path) and faults.is_inside(self._real(path), self.folder)
        return self._inside[path]

    def _real(self, path: str) -> str:
        """Follow links as `os.path.realpath` does, each folder once: beside torch there are 2,300 files in 300."""
        folder, name = os.path.split(path)
        if name in ("", os.curdir, os.pardir) or os.path.islink(path):
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)

    def tree(self, function: types.FunctionType) -> Any:
        """The definition of `function`.

        Raises:
            NotProved: its file is not what was imported, or says it twice.
        """
        code = function.__code__
        codes, nodes = self._read(code.co_filename)
        if code not in codes:
            raise NotProved("is not what its file says: %s was changed or made at run time" % function.__name__)
        said = (code.co_name, code.co_firstlineno)
        found = [node for node in nodes if (getattr(node, "name", "<lambda>"), _first_line(node)) == said]
        if len(found) != 1:
            raise NotProved("has several functions on one line")
        return found[0]

    def _read(self, path: str) -> Tuple[List[types.CodeType], List[Any]]:
        if path not in self._files:
            try:
                with open(path, "rb") as file:
                    text = file.read()
                tree = ast.parse(text)
                code = compile(text, path, "exec", dont_inherit=True)
            except (OSError, ValueError, SyntaxError) as error:
                raise NotProved("cannot be read: %s" % error) from None
            nodes = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
            self._files[path] = list(_codes(code)), nodes
        return self._files[path]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _first_line(node: Any) -> int:
    first: int = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return first


class Names(ast.NodeVisitor):
    """The names that a function binds itself, and those that it declares to be others'."""

    def __init__(self, node: Any) -> None:
        self.bound: Set[str] = set()
        self.others: Dict[str, str] = {}
        """Name -> `global` or `nonlocal`."""
        self.is_generator = False
        self.bound.update(argument.arg for argument in parameters(node.args))
        body = node.body if isinstance(node.body, list) else [node.body]
        for statement in body:
            self.visit(statement)
        self.bound -= set(self.others)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, SCOPES):
            if not isinstance(node, ast.Lambda):
                self.bound.add(node.name)
            return
        if isinstance(node, COMPREHENSIONS):
            self._walrus(node)
            return
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            self.is_generator = True
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self.bound.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            self.bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self.bound.update((a.asname or a.name).split(".")[0] for a in node.names)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            self.others.update(dict.fromkeys(node.names, type(node).__name__.lower()))
        self.generic_visit(node)

    def _walrus(self, node: ast.AST) -> None:
        """`:=` in a comprehension binds in the function around it."""
        if isinstance(node, ast.NamedExpr) and isinstance(node.target, ast.Name):
            self.bound.add(node.target.id)
        for inner in ast.iter_child_nodes(node):
            if not isinstance(inner, SCOPES):
                self._walrus(inner)


def parameters(args: ast.arguments) -> List[ast.arg]:
    """All parameters of a definition."""
    others = (args.vararg, args.kwarg)
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *(a for a in others if a is not None)]


def defaulted(args: ast.arguments) -> List[str]:
    """Names of parameters with defaults, as `Local` keeps these; of keyword-only ones all."""
    positional = [a.arg for a in [*args.posonlyargs, *args.args]]
    return positional[len(positional) - len(args.defaults) :] + [a.arg for a in args.kwonlyargs]


def runs_in_annotations(node: Any) -> bool:
    """Annotations of a definition, which Python computes when it is reached, do more than name types."""
    said = [*(a.annotation for a in parameters(node.args)), getattr(node, "returns", None)]
    return any(isinstance(inner, CODE) for one in said if one is not None for inner in ast.walk(one))


def targets(node: Any) -> Set[str]:
    """The names that a comprehension binds for itself."""
    return {
        inner.id for generator in node.generators for inner in ast.walk(generator.target) if isinstance(inner, ast.Name)
    }


def shown(node: Any) -> str:
    """A short text of an expression, as written."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return "%s.%s" % (shown(node.value), node.attr)
    if isinstance(node, ast.Subscript):
        return "%s[...]" % shown(node.value)
    if isinstance(node, ast.Call):
        return "%s(...)" % shown(node.func)
    if isinstance(node, (ast.Starred, ast.Await)):
        return shown(node.value)
    if isinstance(node, ast.Constant):
        return repr(node.value)[:40]
    return "a %s" % type(node).__name__.lower()

"""Small changes of behaviour that a Python source can suffer, one at a time: what `make mutate` draws from, pure."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

BOUNDARY = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
NEGATED = {
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*"}
SPOKEN = re.compile(r"(LOG|log|logger|logging|warnings|say|print|echo)\b")  # what they say is not behaviour
SMALL = 10
LOCK = re.compile(r"lock|mutex|semaphore", re.IGNORECASE)
OPERATOR = re.compile(rb"not\s+in|is\s+not|//|\*\*|[<>=!]=|[<>+*/%-]|\b(?:in|is|and|or)\b")


@dataclass(frozen=True)
class Mutant:
    """One change: bytes `start` to `end` of a module's source become `text`."""

    path: str
    """Of the module, from the repository's root."""
    line: int
    function: str
    """Its qualified name, e.g. `Store.deploy`; empty for what runs as the module is imported."""
    operator: str
    start: int
    end: int
    text: str
    before: str

    @property
    def name(self) -> str:
        """Short, and the same as long as the source is."""
        return f"{self.path}:{self.line} {self.operator}: {_brief(self.before)} -> {_brief(self.text)}"

    def apply(self, source: bytes) -> bytes:
        """The module's source with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """The change as a unified diff with one line around it."""
        old, new = (s.decode().splitlines(keepends=True) for s in (source, self.apply(source)))
        return "".join(difflib.unified_diff(old, new, self.path, self.path, n=1))


def _brief(text: str) -> str:
    return " ".join(text.split())[:60]


def candidates(path: str, source: bytes) -> list[Mutant]:
    """Every change of a module, in the order of the source, also those that leave no Python."""
    return list(_Finder(path, source).module())


def is_python(mutant: Mutant, source: bytes) -> bool:
    """The module with the change can be compiled, and differs."""
    changed = mutant.apply(source)
    try:
        compile(changed, mutant.path, "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return changed != source


def mutants(path: str, source: bytes) -> list[Mutant]:
    """Every mutant of a module."""
    return [mutant for mutant in candidates(path, source) if is_python(mutant, source)]


class _Finder:
    """Walks one module."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.scope: list[str] = []

    def module(self) -> Iterator[Mutant]:
        yield from self.body(ast.parse(self.source).body)

    # ---- places ------------------------------------------------------------------------------------------------

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def made(self, operator: str, line: int, start: int, end: int, text: str) -> Mutant:
        before = self.source[start:end].decode()
        return Mutant(self.path, line, ".".join(self.scope), operator, start, end, text, before)

    def instead(self, operator: str, node: ast.AST, text: str) -> Mutant:
        return self.made(operator, node.lineno, *self.span(node), text)  # type: ignore[attr-defined]

    def between(self, operator: str, left: ast.AST, right: ast.AST, text: str) -> Iterator[Mutant]:
        """The operator that stands between two operands, which may be in parentheses."""
        start, end = self.span(left)[1], self.span(right)[0]
        match = OPERATOR.search(self.source, start, end)
        if match is not None:
            yield self.made(operator, left.end_lineno, *match.span(), text)  # type: ignore[attr-defined]

    # ---- statements --------------------------------------------------------------------------------------------

    def body(self, nodes: list[ast.stmt]) -> Iterator[Mutant]:
        for node in nodes:
            yield from self.statement(node)

    def statement(self, node: ast.stmt) -> Iterator[Mutant]:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from self.function(node)
            case ast.ClassDef():
                self.scope.append(node.name)
                yield from self.body(node.body)
                self.scope.pop()
            case ast.Import() | ast.ImportFrom() | ast.Assert() | ast.Global() | ast.Nonlocal() | ast.Pass():
                return
            case ast.If() if "TYPE_CHECKING" in self.text(node.test) or "__name__" in self.text(node.test):
                return
            case ast.Expr(value=ast.Constant()):
                return
            case ast.Expr(value=ast.Call() | ast.Await() as value):
                if not SPOKEN.match(self.text(value)):
                    yield self.instead("statement removed", node, "pass")
                    yield from self.inside(node)
            case ast.Raise():
                # What it says is not behaviour: only whether it is raised.
                yield self.instead("statement removed", node, "pass")
            case ast.Continue():
                yield self.instead("loop", node, "break")
            case ast.Break():
                yield self.instead("loop", node, "continue")
            case ast.Delete():
                yield self.instead("statement removed", node, "pass")
            case _:
                yield from self.compound(node)
                yield from self.inside(node)

    def compound(self, node: ast.stmt) -> Iterator[Mutant]:
        match node:
            case ast.Return(value=ast.expr() as value) if self.text(value) != "None":
                is_truth = isinstance(value, ast.Constant) and isinstance(value.value, bool)
                if not is_truth:
                    yield self.instead("return value", value, "None")
            case ast.AugAssign(op=op) if type(op) in (ast.Add, ast.Sub):
                start, end = self.span(node.target)[1], self.span(node.value)[0]
                sign = "-=" if isinstance(op, ast.Add) else "+="
                match = re.compile(rb"[+-]=").search(self.source, start, end)
                if match:
                    yield self.made("arithmetic", node.lineno, *match.span(), sign)
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield self.instead("statement removed", node, "pass")
            case ast.If() | ast.While():
                if not isinstance(node.test, ast.Compare | ast.UnaryOp | ast.Constant):
                    yield self.instead("condition negated", node.test, f"not ({self.text(node.test)})")
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    if LOCK.search(self.text(item.context_expr)):
                        nothing = "__import__('contextlib').nullcontext()"
                        yield self.instead("lock removed", item.context_expr, nothing)
            case ast.Try():
                for handler in node.handlers:
                    if handler.type is not None:
                        yield self.instead("error not caught", handler.type, "ZeroDivisionError")

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Mutant]:
        self.scope.append(node.name)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                yield from self.expression(default)
        yield from self.body(node.body)
        self.scope.pop()

    def inside(self, node: ast.AST) -> Iterator[Mutant]:
        """Of what a statement or an expression is made, but for annotations."""
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                match child:
                    case ast.stmt():
                        yield from self.statement(child)
                    case ast.expr():
                        yield from self.expression(child)
                    case ast.AST():
                        yield from self.inside(child)

    # ---- expressions -------------------------------------------------------------------------------------------

    def expression(self, node: ast.expr) -> Iterator[Mutant]:
        match node:
            case ast.JoinedStr():
                return  # a text
            case ast.Call() if SPOKEN.match(self.text(node.func)):
                return
            case ast.Compare():
                yield from self.compare(node)
            case ast.BinOp(op=op) if type(op) in ARITHMETIC and not self.is_of_texts(node):
                yield from self.between("arithmetic", node.left, node.right, ARITHMETIC[type(op)])
            case ast.BoolOp(op=op):
                other = "or" if isinstance(op, ast.And) else "and"
                yield from self.between("and/or", node.values[0], node.values[1], other)
                if isinstance(op, ast.Or):
                    yield self.instead("default removed", node, self.wrapped(node.values[0]))
            case ast.UnaryOp(op=ast.Not()):
                yield self.instead("not removed", node, self.wrapped(node.operand))
            case ast.IfExp():
                yield self.instead("choice", node, self.wrapped(node.body))
                yield self.instead("choice", node, self.wrapped(node.orelse))
            case ast.Constant():
                yield from self.constant(node)
        yield from self.inside(node)

    def wrapped(self, node: ast.expr) -> str:
        return f"({self.text(node)})"

    @staticmethod
    def is_of_texts(node: ast.BinOp) -> bool:
        """It joins or formats text or lists: arithmetic on it is an error that any test sees."""
        literal = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)
        return any(
            isinstance(side, literal) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
            for side in (node.left, node.right)
        )

    def compare(self, node: ast.Compare) -> Iterator[Mutant]:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            if type(op) in BOUNDARY:
                yield from self.between("boundary", left, right, BOUNDARY[type(op)])
            yield from self.between("comparison negated", left, right, NEGATED[type(op)])

    def constant(self, node: ast.Constant) -> Iterator[Mutant]:
        match node.value:
            case bool() as truth:
                yield self.instead("constant", node, str(not truth))
            case int() | float() as number:
                # One more than 10,000 is a matter of taste; one more than 3 is a limit missed.
                yield self.instead("constant", node, f"({self.text(node)} {'+ 1' if number <= SMALL else '* 2'})")

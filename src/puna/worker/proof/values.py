"""The values of the app's expressions: plain, made by this call, or there before it and shared with other calls."""

from __future__ import annotations

import enum
import re
import types
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Set, Tuple, Union

MOST_CHILDREN = 20_000  # of a table of plain values: a larger one is taken for something unknown
IMMUTABLE = {str, bytes, int, float, bool, complex, type(None), range, slice, type(Ellipsis), type(NotImplemented)}
OF_TORCH = {"dtype", "device", "Size", "layout", "memory_format"}


class NotProved(Exception):
    """Calls may meet, or what is read is not understood; the text says what the line does."""

    def __init__(self, what: str, node: Any = None) -> None:
        super().__init__(what)
        self.what, self.node = what, node


class Plain:
    """An immutable value, or one without anything in it that could be shared."""


class Unique(Plain):
    """A text or number that no other call has: a uuid, and what is written around one."""


class Own:
    """The object that one place in the source has made during this call, and everything inside it.

    `holds` is what was put into it and is not its own. `cls` is its class, when that is the app's.
    """

    __slots__ = ("cls", "holds", "kind")

    def __init__(self, kind: str = "", cls: Any = None) -> None:
        self.kind, self.cls = kind, cls
        self.holds: Set[Atom] = set()


class Live:
    """An object that was there before the call."""

    __slots__ = ("it",)

    def __init__(self, it: Any) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Live) and other.it is self.it

    def __hash__(self) -> int:
        return id(self.it)


class Local:
    """A function or lambda that the call itself has defined, with the variables around it."""

    __slots__ = ("defaults", "node", "scope")

    def __init__(self, node: Any, scope: Any, defaults: Tuple[Value, ...]) -> None:
        self.node, self.scope, self.defaults = node, scope, defaults

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Local) and (other.node, other.scope) == (self.node, self.scope)

    def __hash__(self) -> int:
        return hash((id(self.node), id(self.scope)))


class Method:
    """A method that was looked up and not called yet; `function` is None when it is a library's."""

    __slots__ = ("function", "name", "of")

    def __init__(self, of: Atom, name: str, function: Any = None) -> None:
        self.of, self.name, self.function = of, name, function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and (other.of, other.name, other.function) == (
            self.of,
            self.name,
            self.function,
        )

    def __hash__(self) -> int:
        return hash((self.of, self.name))


class Parent:
    """`super()`: the classes after `after` in the order of the object's."""

    __slots__ = ("after", "of")

    def __init__(self, after: Any, of: Atom) -> None:
        self.after, self.of = after, of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parent) and (other.after, other.of) == (self.after, self.of)

    def __hash__(self) -> int:
        return hash((id(self.after), self.of))


Atom = Union[Plain, Own, Live, Local, Method, Parent]
Value = FrozenSet[Atom]

PLAIN, UNIQUE = Plain(), Unique()
NOTHING: Value = frozenset()
PLAINLY: Value = frozenset([PLAIN])


def is_plain(value: Any) -> bool:
    """Immutable through and through."""
    kind = type(value)
    if kind in IMMUTABLE or kind is re.Pattern:
        return True
    if kind in (tuple, frozenset):
        return len(value) <= MOST_CHILDREN and all(is_plain(v) for v in value)
    if isinstance(value, enum.Enum):
        is_bare = all(name.startswith("_") for name in vars(value))
        return is_bare and type(value.value) in IMMUTABLE and not _has_functions(kind)
    if isinstance(value, tuple) and hasattr(kind, "_fields") and not _has_functions(kind):
        return all(is_plain(v) for v in value)
    return getattr(kind, "__module__", "") == "torch" and kind.__name__ in OF_TORCH


def _has_functions(kind: type) -> bool:
    """The app's class gives its values methods; those that Python writes have no file."""
    return any(
        isinstance(v, (property, classmethod, staticmethod))
        or (isinstance(v, types.FunctionType) and not v.__code__.co_filename.startswith("<"))
        for k in kind.__mro__
        if k.__module__ not in ("builtins", "enum")
        for n, v in vars(k).items()
        if n not in ("__new__", "_generate_next_value_")
    )


def is_table(value: Any) -> bool:
    """A list, dict, set or tuple, exactly, of plain values and such: reading it changes nothing."""
    left = [value]
    seen = 0
    while left:
        one = left.pop()
        seen += 1
        if seen > MOST_CHILDREN:
            return False
        if type(one) is dict:
            left.extend(one.values())
            left.extend(k for k in one if not is_plain(k))
        elif type(one) in (list, tuple, set, frozenset):
            left.extend(one)
        elif not is_plain(one):
            return False
    return True


def of(value: Any) -> Atom:
    """The atom of a live object."""
    return PLAIN if is_plain(value) else Live(value)


def value(*atoms: Atom) -> Value:
    return frozenset(atoms)


def is_own_method(atom: Atom) -> bool:
    """A library's method of what the call has made: it changes nothing else."""
    return isinstance(atom, Method) and atom.function is None and isinstance(atom.of, (Plain, Own))


def is_readable(atom: Atom) -> bool:
    """Reading it keeps nothing and runs nothing of the app's."""
    return isinstance(atom, (Plain, Own)) or is_own_method(atom) or (isinstance(atom, Live) and is_table(atom.it))


def reached(start: Value) -> Iterator[Atom]:
    """Everything that can be reached through what this call has made."""
    seen: Set[Atom] = set()
    left: List[Atom] = list(start)
    while left:
        atom = left.pop()
        if atom in seen:
            continue
        seen.add(atom)
        yield atom
        if isinstance(atom, Own):
            left.extend(atom.holds)


def children(it: Any) -> Value:
    """The elements of a live table."""
    if type(it) is dict:
        return frozenset(of(v) for v in it.values()) | frozenset(of(k) for k in it) or PLAINLY
    return frozenset(of(v) for v in it) or PLAINLY


class Arguments:
    """The arguments of a call. `rest` and `named_rest` are elements of which the place is not known."""

    __slots__ = ("named", "named_rest", "positional", "rest")

    def __init__(self, positional: Optional[List[Value]] = None, named: Optional[Dict[str, Value]] = None) -> None:
        self.positional: List[Value] = positional or []
        self.named: Dict[str, Value] = named or {}
        self.rest: Value = NOTHING
        self.named_rest: Value = NOTHING

    def all(self) -> Value:
        """Every atom, whatever its place."""
        found = set(self.rest | self.named_rest)
        for one in [*self.positional, *self.named.values()]:
            found |= one
        return frozenset(found)

    def at(self, place: int, name: str = "") -> Value:
        """One argument by place or name; nothing when it is not given."""
        if name and name in self.named:
            return self.named[name]
        if place < len(self.positional):
            return self.positional[place]
        return self.rest | self.named_rest

    def without_first(self, count: int = 1) -> Arguments:
        """The same without the first so many."""
        made = Arguments(self.positional[count:], dict(self.named))
        made.rest, made.named_rest = self.rest, self.named_rest
        return made

    def with_first(self, first: Value) -> Arguments:
        """The same with one more in front."""
        made = Arguments([first, *self.positional], dict(self.named))
        made.rest, made.named_rest = self.rest, self.named_rest
        return made

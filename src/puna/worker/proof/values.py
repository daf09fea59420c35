"""The values of the app's expressions: plain, made by this call, or shared with other calls; their attributes."""

from __future__ import annotations

import enum
import os
import re
import sys
import types
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Set, Tuple, Union

from puna.worker.proof import library
from puna.worker.proof.library import Known
from puna.worker.proof.source import NotProved, Sources, shown

MOST_CHILDREN = 20_000  # of a table of plain values: a larger one is taken for something unknown
IMMUTABLE = {str, bytes, int, float, bool, complex, type(None), range, slice, type(Ellipsis), type(NotImplemented)}
OF_TORCH = {"dtype", "device", "Size", "layout", "memory_format"}


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
        mine = (self.of, self.name, self.function)
        return isinstance(other, Method) and (other.of, other.name, other.function) == mine

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
        return frozenset().union(self.rest, self.named_rest, *self.positional, *self.named.values())

    def at(self, place: int, name: str = "") -> Value:
        """One argument by place or name; nothing when it is not given."""
        if name and name in self.named:
            return self.named[name]
        if place < len(self.positional):
            return self.positional[place]
        return self.rest | self.named_rest

    def without_first(self) -> Arguments:
        """The same without the first."""
        return self._with(self.positional[1:])

    def with_first(self, first: Value) -> Arguments:
        """The same with one more in front."""
        return self._with([first, *self.positional])

    def _with(self, positional: List[Value]) -> Arguments:
        made = Arguments(positional, dict(self.named))
        made.rest, made.named_rest = self.rest, self.named_rest
        return made


DUNDERS = {"__name__", "__doc__", "__class__"}
# With any other of Python's special methods a class of the app's may do anything where none is called.
HARMLESS = {"__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__dict__", "__weakref__",
            "__firstlineno__", "__static_attributes__", "__slots__", "__annotate_func__", "__annotations_cache__",
            "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__post_init__", "__annotate__",
            "__abstractmethods__", "__orig_bases__", "__parameters__"}  # fmt: skip
ALWAYS_READ = {"__getattribute__", "__getattr__"}
MISSING = object()


class Attributes:
    """Reading, of one proof: what it has made is kept by place, so that a second look finds the same."""

    def __init__(self, sources: Sources, known_things: Known) -> None:
        self.sources, self.known = sources, known_things
        self.path: Tuple[Any, ...] = ()
        """The calls under way."""
        self.has_changed = False
        self._made: Dict[Any, Own] = {}

    def run(self, function: Any, arguments: Arguments, node: Any) -> Value:
        """Call a function of the app's."""
        raise NotImplementedError

    # -- what the call makes

    def make(self, node: Any, holds: Value = NOTHING, kind: str = "", cls: Any = None) -> Own:
        """The object that this place makes."""
        key = (self.path, node if isinstance(node, tuple) else id(node), kind)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = Own(kind, cls)
            self.has_changed = True
        self.put(made, holds)
        return made

    def put(self, into: Own, what: Value) -> None:
        """`into` holds `what` from now on."""
        self.grow(into.holds, {a for a in what if not isinstance(a, Plain) and a is not into})

    def grow(self, found: Set[Atom], more: Any) -> None:
        """Add; whatever is new needs another look at all that came before."""
        size = len(found)
        found.update(more)
        self.has_changed |= len(found) != size

    # -- attributes

    def attribute(self, whole: Value, name: str, node: Any) -> Value:
        """`whole.name`."""
        return frozenset().union(*(self.attribute_of(atom, name, node) for atom in whole))

    def attribute_of(self, atom: Atom, name: str, node: Any) -> Value:
        """The same of one atom."""
        if name.startswith("__") and name not in DUNDERS:
            raise NotProved("uses %s" % shown(node), node)
        if atom is UNIQUE:
            return value(UNIQUE) if name in ("hex", "int", "urn") else PLAINLY
        if isinstance(atom, Plain):
            return PLAINLY
        if isinstance(atom, Own):
            return self._of_own(atom, name, node)
        if isinstance(atom, Parent):
            return self._of_parent(atom, name, node)
        if isinstance(atom, Live):
            return self._of_live(atom, name, node)
        if isinstance(atom, (Local, Method)) and name in DUNDERS:
            return PLAINLY
        if is_own_method(atom):
            return value(PLAIN, atom.of)  # type: ignore[union-attr]
        raise NotProved("uses %s, of which nothing is known" % shown(node), node)

    def _of_own(self, atom: Own, name: str, node: Any) -> Value:
        if name == "__class__":
            return PLAINLY if atom.cls is None else value(Live(atom.cls))
        if atom.kind == "error" and name in ("obj", "value"):
            raise NotProved("reads %s, which may be what other calls share" % shown(node), node)
        inside = value(atom, PLAIN) | frozenset(atom.holds)
        if atom.cls is None:
            is_method = name in library.OWN_METHODS or name in library.BY_KIND.get(atom.kind, ())
            return inside | {Method(atom, name)} if is_method else inside
        found = library.static(atom.cls, name)
        if found is None:
            return inside
        return self._bound(found, atom, atom.cls, name, node) | inside

    def _of_parent(self, atom: Parent, name: str, node: Any) -> Value:
        cls = atom.of.cls if isinstance(atom.of, Own) else type(getattr(atom.of, "it", None))
        order = cls.__mro__
        for one in order[order.index(atom.after) + 1 :]:
            if name in vars(one):
                return self._bound(vars(one)[name], atom.of, one, name, node)
        raise NotProved("uses %s, which is not there" % shown(node), node)

    def _of_live(self, atom: Live, name: str, node: Any) -> Value:
        it = atom.it
        if isinstance(it, types.ModuleType):
            return self._of_module(it, name, node)
        if isinstance(it, type):
            return self._of_class(it, name, node)
        if name == "__class__":
            return value(Live(type(it)))
        if name in DUNDERS:
            return PLAINLY
        if library.engine_of(it) and name in library.MODEL_DATA:
            return value(of(getattr(it, name)))
        if library.is_tokenizer(it, self.known.is_apps_class) and name in library.TOKENIZER_DATA:
            return value(of(getattr(it, name)))
        return self._of_instance(atom, name, node)

    def _of_instance(self, atom: Live, name: str, node: Any) -> Value:
        it, kind = atom.it, type(atom.it)
        for cls in kind.__mro__[:-1]:
            odd = ALWAYS_READ & set(vars(cls))
            if odd and self.known.is_apps_class(cls):
                raise NotProved("reads %s through %s of %s" % (shown(node), sorted(odd)[0], cls.__name__), node)
        found = library.static(kind, name)
        own = getattr(it, "__dict__", {})
        if hasattr(type(found), "__set__") or (found is not None and name not in own):
            return self._bound(found, atom, kind, name, node)
        if name in own:
            return value(of(own[name]))
        return value(Method(atom, name))  # what calls it knows the method, or refuses

    def _of_module(self, module: Any, name: str, node: Any) -> Value:
        if self.known.is_apps_module(module):
            found = vars(module).get(name, MISSING)
        else:
            found = library.attribute(module, name)
            found = MISSING if found is None and name not in vars(module) else found
        if found is MISSING:
            full = "%s.%s" % (module.__name__, name)
            if full not in sys.modules:
                raise NotProved("uses %s, which is not there yet" % shown(node), node)
            found = sys.modules[full]
        return value(of(found))

    def _of_class(self, cls: Any, name: str, node: Any) -> Value:
        if name == "__class__":
            return value(Live(type(cls)))
        if name in DUNDERS:
            return PLAINLY
        if isinstance(cls, enum.EnumMeta):
            return value(of(getattr(cls, name, None)))
        found = library.static(cls, name)
        if found is None or (not self.known.is_apps_class(cls) and not isinstance(found, types.FunctionType)):
            return value(Method(Live(cls), name))
        if isinstance(found, (staticmethod, classmethod)):
            return self._bound(found, Live(cls), cls, name, node)
        return value(of(found))

    def _bound(self, found: Any, atom: Atom, cls: Any, name: str, node: Any) -> Value:
        """A class's attribute, bound to an object of it."""
        if isinstance(found, types.FunctionType):
            return value(Method(atom, name, library.torch_decorated(found) or found))
        if isinstance(found, staticmethod):
            return value(of(found.__func__))
        if isinstance(found, classmethod):
            return value(Method(Live(cls), name, found.__func__))
        if isinstance(found, property):
            if found.fget is None or not self._is_apps(found.fget):
                raise NotProved("reads %s, a property of which nothing is known" % shown(node), node)
            return self.run(found.fget, Arguments([value(atom)]), node)
        if found is not None and hasattr(type(found), "__get__"):
            if isinstance(found, (types.MemberDescriptorType, types.GetSetDescriptorType)) and isinstance(atom, Live):
                return value(of(getattr(atom.it, name, None)))
            if isinstance(atom, Live) and not self.known.is_apps_class(cls):
                return value(Method(atom, name))
            raise NotProved("reads %s, a descriptor of which nothing is known" % shown(node), node)
        return value(of(found))

    def _is_apps(self, function: Any) -> bool:
        return isinstance(function, types.FunctionType) and self.sources.is_inside(function.__code__.co_filename)

    # -- elements

    def elements(self, whole: Value, node: Any) -> Value:
        """The values that iterating over a value, or an index of it, may give."""
        found: Set[Atom] = set()
        for atom in whole:
            if isinstance(atom, Plain) or is_own_method(atom):
                found.add(PLAIN)
            elif isinstance(atom, Own):
                found |= {atom, PLAIN, *atom.holds}
            elif isinstance(atom, Live) and (is_table(atom.it) or type(atom.it) in (dict, list, tuple)):
                found |= children(atom.it)
            elif isinstance(atom, Live) and isinstance(atom.it, os._Environ):
                found.add(PLAIN)
            else:
                raise NotProved("reads from %s, which other calls share" % shown(node), node)
        return frozenset(found)

    def element(self, whole: Value, key: Any, node: Any) -> Value:
        """`whole[key]`, where `key` is MISSING when it is not known."""
        found: Set[Atom] = set()
        for atom in whole:
            it: Any = atom.it if isinstance(atom, Live) else None
            if key is not MISSING and type(it) is dict and key in it:
                found.add(of(it[key]))
            else:
                found |= self.elements(value(atom), node)
        return frozenset(found)

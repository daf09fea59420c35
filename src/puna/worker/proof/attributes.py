"""Attributes and elements of values, read."""

from __future__ import annotations

import enum
import os
import sys
import types
from typing import Any, Dict, Set, Tuple

from puna.worker.proof import library
from puna.worker.proof.library import Known
from puna.worker.proof.source import Sources, shown
from puna.worker.proof.values import (
    NOTHING,
    PLAIN,
    PLAINLY,
    UNIQUE,
    Arguments,
    Atom,
    Live,
    Local,
    Method,
    NotProved,
    Own,
    Parent,
    Plain,
    Value,
    children,
    is_own_method,
    is_table,
    of,
    value,
)

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
        found: Set[Atom] = set()
        for atom in whole:
            found |= self.attribute_of(atom, name, node)
        return frozenset(found)

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
        if isinstance(found, staticmethod):
            return value(of(found.__func__))
        if isinstance(found, classmethod):
            return value(Method(Live(cls), name, found.__func__))
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
        return isinstance(function, types.FunctionType) and self.sources.is_mine(function.__code__)

    # -- elements

    def elements(self, whole: Value, node: Any) -> Value:
        """The values that iterating over a value, or an index of it, may give."""
        found: Set[Atom] = set()
        for atom in whole:
            if isinstance(atom, Plain) or is_own_method(atom):
                found.add(PLAIN)
            elif isinstance(atom, Own):
                found |= {atom, PLAIN, *atom.holds}
            elif isinstance(atom, Live) and is_table(atom.it):
                found |= children(atom.it)
            elif isinstance(atom, Live) and type(atom.it) in (dict, list, tuple):
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

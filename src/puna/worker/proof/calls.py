"""The effects of calls: of the app's own functions by reading them, of others by what is known of them."""

from __future__ import annotations

import ast
import enum
import logging
import os
import sys
import types
from typing import Any, Dict, List, Optional, Set

from puna.worker.engines.vllm.loop import SharedEngine
from puna.worker.proof import library
from puna.worker.proof.source import NotProved, shown
from puna.worker.proof.values import (
    HARMLESS,
    MISSING,
    NOTHING,
    PLAIN,
    PLAINLY,
    UNIQUE,
    Arguments,
    Atom,
    Attributes,
    Live,
    Local,
    Method,
    Own,
    Parent,
    Plain,
    Value,
    is_own_method,
    is_plain,
    is_readable,
    is_table,
    of,
    reached,
    value,
)

LOGGERS = (logging.Logger, logging.RootLogger)


class Calls(Attributes):
    """Calling, of one proof."""

    reads_files = False
    """A file is opened for reading."""

    def run_local(self, function: Local, arguments: Arguments, node: Any) -> Value:
        """Call a function that the call has defined itself."""
        raise NotImplementedError

    def call(self, callee: Value, arguments: Arguments, node: Any) -> Value:
        """The result of a call, whichever of the functions is meant."""
        # What a call has made of texts, lists and tensors cannot be called.
        functions = frozenset(a for a in callee if not isinstance(a, (Plain, Own)))
        return frozenset().union(*(self._call(atom, arguments, node) for atom in functions or callee))

    def _call(self, atom: Atom, arguments: Arguments, node: Any) -> Value:
        if isinstance(atom, Local):
            return self.run_local(atom, arguments, node)
        if isinstance(atom, Method):
            if self._is_apps(atom.function) or getattr(atom.function, library.MARK, False):
                return self._call_live(atom.function, arguments.with_first(value(atom.of)), node)
            return self.method(atom.of, atom.name, arguments, node)
        if isinstance(atom, Live):
            return self._call_live(atom.it, arguments, node)
        raise NotProved("calls %s, of which nothing is known" % shown(node), node)

    def _call_live(self, it: Any, arguments: Arguments, node: Any) -> Value:
        if isinstance(it, types.MethodType):
            bound = arguments.with_first(value(of(it.__self__)))
            function = library.torch_decorated(it.__func__) or it.__func__
            if self._is_apps(function):
                return self.run(function, bound, node)
            if library.static(type(it.__self__), it.__func__.__name__) is it.__func__:
                return self.method(Live(it.__self__), it.__func__.__name__, arguments, node)
            return self._call_live(it.__func__, bound, node)
        if self._is_apps(it):
            return self.run(it, arguments, node)
        effect = self.known.effect(it)
        if effect:
            return self._known(effect, it, arguments, node)
        if isinstance(it, type) and self.known.is_apps_class(it):
            return self._construct(it, arguments, node)
        wrapped = library.torch_decorated(it)
        if wrapped is not None:
            return self._call_live(wrapped, arguments, node)
        special = _SPECIAL.get(it) if isinstance(it, (types.BuiltinFunctionType, type)) else None
        if special is not None:
            return getattr(self, special)(arguments, node)  # type: ignore[no-any-return]
        if isinstance(it, types.FunctionType) and getattr(it, library.MARK, False) and arguments.positional:
            (first, *_) = arguments.positional[0] or (PLAIN,)
            return self.method(first, it.__name__, arguments.without_first(), node, is_certain=True)
        if library.is_tokenizer(it, self.known.is_apps_class) or library.is_pipeline(it):
            return self._fresh(arguments, node)
        if self.known.is_apps_class(type(it)):
            call = library.static(type(it), "__call__")
            if self._is_apps(call):
                return self.run(call, arguments.with_first(value(Live(it))), node)
        raise NotProved("calls %s, which may keep something of a request" % shown(node), node)

    # -- known functions

    def _known(self, effect: str, it: Any, arguments: Arguments, node: Any) -> Value:
        if effect == library.UNIQUE:
            return value(UNIQUE)
        if effect == "deepcopy":
            return self._copied(arguments, node)
        if effect == "logger":
            return value(Live(logging.getLogger()))
        if effect == library.WRITES:
            self.must_be_unique(arguments.at(0), node)
            return PLAINLY
        if effect == library.FIRST:
            return self.call(arguments.at(0), arguments.without_first(), node)
        if effect == library.THREAD:
            return self._thread(arguments, node)
        functions = self._functions(arguments)
        if effect in (library.CALLS, library.PURE, library.SCALAR) and functions:
            return self._with_functions(functions, arguments, node)
        if it in (isinstance, issubclass, callable, id):
            return PLAINLY
        self.must_be_readable(arguments, node)
        if effect == library.SCALAR:
            is_unique = arguments.positional[:1] == [value(UNIQUE)] and it in (str, repr, format)
            return value(UNIQUE) if is_unique else PLAINLY
        if effect in (library.PURE, library.CALLS):
            return self._alike(arguments, node)
        kind = effect if effect in (*library.BY_KIND, library.CONTEXT) else ""
        return value(self.make(node, self._inside(arguments), kind=kind), PLAIN)

    def _with_functions(self, functions: List[Atom], arguments: Arguments, node: Any) -> Value:
        """`map`, `sorted(key=...)`: each function may be called with any of the rest, any number of times."""
        others = Arguments()
        rest = frozenset(a for a in arguments.all() if a not in functions)
        inside = Arguments([rest])
        self.must_be_readable(inside, node)
        others.rest = self.elements(rest, node) | PLAINLY
        results: Set[Atom] = set()
        for _ in range(2):  # a result may be the next one's argument
            for function in functions:
                results |= self._call(function, others, node)
            others.rest = others.rest | frozenset(results)
        made = self.make(node, frozenset(results) | others.rest)
        return value(made, PLAIN) | others.rest

    def _functions(self, arguments: Arguments) -> List[Atom]:
        return [a for a in arguments.all() if isinstance(a, (Local, Method)) or self._is_function(a)]

    def _is_function(self, atom: Atom) -> bool:
        """An app's function, or a class of the app's; a library's class is only a value here."""
        if _is_type(atom):
            return self.known.is_apps_class(atom.it)  # type: ignore[union-attr]
        functions = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
        return isinstance(atom, Live) and isinstance(atom.it, functions)

    def _alike(self, arguments: Arguments, node: Any) -> Value:
        """A new thing that may hold what was given and what is in it, or one of these."""
        everything = arguments.all() | self.elements(self._data(arguments), node)
        return value(self.make(node, everything), PLAIN) | frozenset(a for a in everything if not _is_type(a))

    def _data(self, arguments: Arguments) -> Value:
        return frozenset(a for a in arguments.all() if not _is_type(a))

    def _inside(self, arguments: Arguments) -> Value:
        """The part of the arguments that a new object keeps: not the things that cannot be changed through it."""
        return frozenset(a for a in arguments.all() if not self.is_inert(a) and not _is_type(a))

    def _copied(self, arguments: Arguments, node: Any) -> Value:
        for atom in reached(arguments.all()):
            it = atom.it if isinstance(atom, Live) else None
            is_settings = type(it).__name__ in ("SamplingParams", "GenerationConfig") and not self._is_apps_object(it)
            if not (is_readable(atom) or is_settings):
                raise NotProved("copies with %s something of which nothing is known" % shown(node), node)
        return value(self.make(node), PLAIN)

    def _is_apps_object(self, it: Any) -> bool:
        return self.known.is_apps_class(type(it))

    def _thread(self, arguments: Arguments, node: Any) -> Value:
        """A thread of this call's: it calls its target with what it is given."""
        given = Arguments()
        given.rest = self.elements(arguments.at(3, "args"), node) if arguments.at(3, "args") else NOTHING
        given.named_rest = self.elements(arguments.at(4, "kwargs"), node) if arguments.at(4, "kwargs") else NOTHING
        self.call(arguments.named.get("target", NOTHING), given, node)
        if len(arguments.positional) > 1 or arguments.rest:
            raise NotProved("starts a thread in a way that is not understood", node)
        return value(self.make(node, kind=library.THREAD))

    # -- special functions

    def _getattr(self, arguments: Arguments, node: Any) -> Value:
        name = _constant(node, 1)
        if not isinstance(name, str) or arguments.rest:
            raise NotProved("calls %s with a name that is not written there" % shown(node), node)
        try:
            return self.attribute(arguments.at(0), name, node) | arguments.at(2)
        except NotProved:
            raise NotProved("reads %s of %s" % (name, shown(node.args[0])), node) from None

    def _hasattr(self, arguments: Arguments, node: Any) -> Value:
        if isinstance(_constant(node, 1), str):
            self._getattr(arguments, node)
        return PLAINLY

    def _setattr(self, arguments: Arguments, node: Any) -> Value:
        name = _constant(node, 1)
        self.store_attribute(arguments.at(0), name if isinstance(name, str) else "?", arguments.at(2), node)
        return PLAINLY

    def _type(self, arguments: Arguments, node: Any) -> Value:
        if len(arguments.positional) != 1:
            raise NotProved("makes a class", node)
        return self.attribute(arguments.at(0), "__class__", node)

    def _super(self, arguments: Arguments, node: Any) -> Value:
        if arguments.all():
            (cls, *_), of_what = arguments.at(0) or (PLAIN,), arguments.at(1)
            if isinstance(cls, Live) and isinstance(cls.it, type):
                return frozenset(Parent(cls.it, a) for a in of_what if isinstance(a, (Live, Own)))
        raise NotProved("uses super in a way that is not understood", node)

    def _open(self, arguments: Arguments, node: Any) -> Value:
        mode = _constant(node, 1, "mode") if len(node.args) > 1 or "mode" in arguments.named else "r"
        self.must_be_readable(arguments, node)
        if not isinstance(mode, str) or set(mode) & set("wax+"):
            self.must_be_unique(arguments.at(0, "file"), node)
            return value(self.make(node, kind=library.BUFFER))
        self.reads_files = True
        return value(self.make(node, kind="file"))

    def store_attribute(self, whole: Value, name: str, what: Value, node: Any) -> None:
        """`whole.name = what`."""
        for atom in whole:
            if isinstance(atom, Plain) or is_own_method(atom):
                continue  # Python refuses
            if not isinstance(atom, Own):
                target = node if not isinstance(node, ast.Call) else node.args[0]
                text = shown(target) + ("" if target is node else "." + name)
                raise NotProved("keeps %s" % text, node)
            found = None if atom.cls is None else library.static(atom.cls, name)
            if hasattr(type(found), "__set__") or isinstance(found, types.FunctionType):
                raise NotProved("sets %s, which its class has as something else" % shown(node), node)
            self.put(atom, what)

    # -- the app's classes

    def _construct(self, cls: Any, arguments: Arguments, node: Any) -> Value:
        """An object of a class of the app's, made by this call."""
        if isinstance(cls, enum.EnumMeta) and all(map(is_plain, cls)):
            return PLAINLY
        if issubclass(cls, tuple) and hasattr(cls, "_fields") and not any(map(self._is_code, vars(cls).items())):
            return value(self.make(node, arguments.all()))
        if self.is_plain_model(cls):
            self.must_be_readable(arguments, node)
            return value(self.make(node, self._inside(arguments)))
        self._must_be_simple(cls, node)
        made = self.make(node, cls=cls)
        init = library.static(cls, "__init__")
        if self._is_apps(init):
            self.run(init, arguments.with_first(value(made)), node)
        else:  # a dataclass's, written by Python, or an exception's
            self.put(made, arguments.all())
        after = library.static(cls, "__post_init__")
        if self._is_apps(after):
            self.run(after, Arguments([value(made)]), node)
        for one in getattr(cls, "__dataclass_fields__", {}).values():
            is_given = type(one.default).__name__ != "_MISSING_TYPE"
            self.put(made, value(of(one.default)) if is_given else NOTHING)
            if one.default_factory in (list, dict, set) or type(one.default_factory).__name__ == "_MISSING_TYPE":
                continue
            raise NotProved("makes a %s, whose fields are made by a function" % cls.__name__, node)
        return value(made)

    def _must_be_simple(self, cls: Any, node: Any) -> None:
        if type(cls) is not type:
            raise NotProved("makes a %s, whose class is made by %s" % (cls.__name__, type(cls).__name__), node)
        for one in cls.__mro__:
            is_apps = self.known.is_apps_class(one)
            if one is object or (issubclass(one, BaseException) and not is_apps):
                continue
            if not is_apps:
                raise NotProved("makes a %s, which is a %s" % (cls.__name__, one.__name__), node)
            for name, found in vars(one).items():
                is_pythons = isinstance(found, types.FunctionType) and not self._is_apps(found)
                if name.startswith("__") and name not in HARMLESS and not is_pythons and found is not None:
                    raise NotProved("makes a %s, which has %s" % (cls.__name__, name), node)

    def is_plain_model(self, cls: Any) -> bool:
        """A pydantic class that only says what fields there are."""
        if not any(one.__name__ == "BaseModel" and one.__module__.split(".")[0] == "pydantic" for one in cls.__mro__):
            return False
        for one in cls.__mro__:
            if self.known.is_apps_class(one) and any(map(self._is_code, vars(one).items())):
                return False
        described = getattr(cls, "__pydantic_core_schema__", None)
        if described is None:  # pydantic 1
            fields = getattr(cls, "__fields__", {}).values()
            return not getattr(cls, "__validators__", None) and all(f.default_factory is None for f in fields)
        return _is_description(described)

    def _is_code(self, item: Any) -> bool:
        name, found = item
        is_method = isinstance(found, (property, classmethod, staticmethod)) and not name.startswith("_")
        return is_method or self._is_apps(found)

    # -- methods

    def method(self, atom: Atom, name: str, arguments: Arguments, node: Any, is_certain: bool = False) -> Value:
        """Call a method of something that is not of the app's making."""
        if isinstance(atom, Plain):
            return self._method_of_plain(atom, name, arguments, node)
        if isinstance(atom, Own):
            return self._method_of_own(atom, name, arguments, node)
        if isinstance(atom, Live) and isinstance(atom.it, type):
            return self._method_of_class(atom.it, name, arguments, node)
        if isinstance(atom, Live):
            return self._method_of_live(atom.it, name, arguments, node, is_certain)
        raise NotProved("calls %s, of which nothing is known" % shown(node), node)

    def _method_of_plain(self, atom: Plain, name: str, arguments: Arguments, node: Any) -> Value:
        functions = self._functions(arguments)
        if functions:
            return self._with_functions(functions, arguments, node)
        self.must_be_readable(arguments, node)
        if atom is UNIQUE and name in ("replace", "lower", "upper", "strip", "hex"):
            return value(UNIQUE)
        if name in library.PLAIN_RESULTS:
            return PLAINLY
        return value(self.make(node), PLAIN)

    def _method_of_own(self, atom: Own, name: str, arguments: Arguments, node: Any) -> Value:
        if atom.kind == library.THREAD and name == "map":
            return self._with_functions(self._functions(arguments), arguments, node)
        if atom.kind == library.THREAD and name == "submit":
            return self._submitted(arguments, node)
        if atom.kind == library.LOOP and name == "run_in_executor":
            return self._submitted(arguments.without_first(), node)
        if name not in library.OWN_METHODS and name not in library.BY_KIND.get(atom.kind, ()):
            raise NotProved("calls %s, of which nothing is known" % shown(node), node)
        functions = self._functions(arguments)
        if functions and name not in library.PUTS:
            self._with_functions(functions, Arguments([arguments.all(), value(atom)]), node)
            return value(atom, PLAIN) | frozenset(atom.holds)
        if name in library.PUTS:
            self.put(atom, arguments.all())
            if name in ("extend", "update"):
                self.put(atom, self.elements(self._data(arguments), node))
            return value(atom, PLAIN) | frozenset(atom.holds)
        self.must_be_readable(arguments, node)
        if name in library.PLAIN_RESULTS and name != "item":
            return value(self.make(node, arguments.all()), PLAIN)
        self.put(atom, self._inside(arguments))
        return value(self.make(node, value(atom) | frozenset(atom.holds)), atom, PLAIN) | frozenset(atom.holds)

    def _submitted(self, arguments: Arguments, node: Any) -> Value:
        """A function called by another thread of this call's."""
        results = self.call(arguments.at(0), arguments.without_first(), node)
        return value(self.make(node, results), PLAIN) | results

    def _method_of_class(self, cls: Any, name: str, arguments: Arguments, node: Any) -> Value:
        if not self.known.effect(cls) or name not in library.CLASS_METHODS:
            raise NotProved("calls %s, of which nothing is known" % shown(node), node)
        self.must_be_readable(arguments, node)
        return self._alike(arguments, node)

    def _method_of_live(self, it: Any, name: str, arguments: Arguments, node: Any, is_certain: bool) -> Value:
        engine = library.engine_of(it)
        if engine and self._overrides(type(it)):
            raise NotProved("calls %s, and %s changes what it does" % (shown(node), type(it).__name__), node)
        if engine and (is_certain or library.is_marked(it, name)):
            return self._engine_call(arguments, node)
        if (engine == "vllm" or type(it) is SharedEngine) and name in library.ENGINE_METHODS:
            return self._fresh(arguments, node)
        if engine == "vllm" and name == "get_tokenizer" and not self.known.is_apps_class(type(it)):
            return value(of(it.get_tokenizer()))
        if library.is_tokenizer(it, self.known.is_apps_class) and name in library.TOKENIZER_METHODS:
            return self._fresh(arguments, node)
        if library.is_async_engine(it) and name == "generate" and not self._is_apps_object(it):
            self.must_be_unique(arguments.at(2, "request_id"), node)
            return self._engine_call(arguments, node)
        if type(it) in LOGGERS and name in library.LOGGER_METHODS:
            self.must_be_readable(arguments, node)
            return PLAINLY
        if isinstance(it, os._Environ) and name in ("get", "items", "keys", "values", "copy"):
            return value(self.make(node), PLAIN)
        if type(it).__name__ == "SamplingParams" and name == "clone" and not self._is_apps_object(it):
            return value(self.make(node))
        if is_table(it):
            if name not in library.TABLE_READS:
                raise NotProved("changes %s (%s)" % (_changed(node), name), node)
            self.must_be_readable(arguments, node)
            return self._alike(arguments.with_first(value(Live(it))), node)
        if type(it) in (dict, list, set) and name in ("get", "items", "keys", "values"):
            return self.elements(value(Live(it)), node) | value(self.make(node, self.elements(value(Live(it)), node)))
        raise NotProved("calls %s, which may keep something of a request" % shown(node), node)

    def _engine_call(self, arguments: Arguments, node: Any) -> Value:
        """An engine batches the call with others, and answers each its own; what it is given it does not keep."""
        for atom in reached(arguments.all()):
            has_code = isinstance(atom, Own) and atom.cls is not None and self._has_methods(atom.cls)
            if has_code or not (is_readable(atom) or self.is_inert(atom)):
                raise NotProved("gives %s something that other calls share" % shown(node), node)
        return value(self.make(node), PLAIN)

    def _overrides(self, kind: Any) -> bool:
        """A subclass of the app's replaces a method of the engine's, which the engine itself may call."""
        for place, one in enumerate(kind.__mro__):
            if any(getattr(found, library.MARK, False) for found in vars(one).values()):
                return False  # the library's class of engines, as the worker has changed it
            bases = kind.__mro__[place + 1 : -1]
            own = [name for name, found in vars(one).items() if name != "__init__" and self._is_apps(found)]
            if any(name in vars(base) for name in own for base in bases):
                return True
        return False

    def _has_methods(self, cls: Any) -> bool:
        """A library that is given an object of it may run code of the app's."""
        return any(self._is_apps(v) for one in cls.__mro__ for n, v in vars(one).items() if n != "__init__")

    def _fresh(self, arguments: Arguments, node: Any) -> Value:
        self.must_be_readable(arguments, node)
        return value(self.make(node), PLAIN)

    # -- conditions

    def is_inert(self, atom: Atom) -> bool:
        """A live object that a library may be given: nothing of a request stays in it."""
        if not isinstance(atom, Live):
            return False
        it = atom.it
        if library.engine_of(it) or library.is_tokenizer(it, self.known.is_apps_class) or type(it) in LOGGERS:
            return True
        if it is sys.stdout or it is sys.stderr:
            return not self._is_apps_object(it)
        names = ("SamplingParams", "GenerationConfig", "LoRARequest", "BeamSearchParams")
        # Settings may bring functions along, such as logits processors.
        return type(it).__name__ in names and not getattr(it, "logits_processors", None)

    def must_be_readable(self, arguments: Arguments, node: Any) -> None:
        """Nothing that is given, and nothing in it, can run code of the app's or keep anything."""
        for atom in reached(arguments.all()):
            if is_readable(atom) or self.is_inert(atom) or _is_type(atom):
                continue
            if isinstance(atom, (Local, Method)) or self._is_function(atom):
                raise NotProved("gives a function to %s, of which is not known when it calls it" % shown(node), node)
            raise NotProved("gives %s something that other calls share" % shown(node), node)

    def must_be_unique(self, name: Value, node: Any) -> None:
        """A file, or an id, that no other call has."""
        if not name or any(atom is not UNIQUE for atom in name):
            raise NotProved("uses %s with a name that other calls may have too" % shown(node), node)


def _is_description(schema: Any) -> bool:
    """pydantic's own description of a class, when it calls no functions and gives nobody a value that is shared."""
    if isinstance(schema, dict):
        if str(schema.get("type", "")).startswith(("function", "custom", "is-instance", "call")):
            return False
        for name, one in schema.items():
            if name == "default_factory" and one not in (list, dict, set, str, int):
                return False
            if name == "default" and not is_table(one):
                return False
            if name not in ("cls", "metadata", "default", "default_factory", "config") and not _is_description(one):
                return False
        return True
    if isinstance(schema, (list, tuple)):
        return all(map(_is_description, schema))
    return not isinstance(schema, (types.FunctionType, types.MethodType))


def _changed(node: Any) -> str:
    """The text of what a call of a method changes."""
    func = getattr(node, "func", node)
    return shown(getattr(func, "value", func))


def _is_type(atom: Atom) -> bool:
    return isinstance(atom, Live) and isinstance(atom.it, type)


def _constant(node: Any, place: int, name: str = "") -> Any:
    given: Optional[ast.AST] = node.args[place] if len(node.args) > place else None
    for keyword in node.keywords:
        if name and keyword.arg == name:
            given = keyword.value
    return given.value if isinstance(given, ast.Constant) else MISSING


_SPECIAL: Dict[Any, str] = {
    getattr: "_getattr", hasattr: "_hasattr", setattr: "_setattr", type: "_type", super: "_super", open: "_open",
}  # fmt: skip

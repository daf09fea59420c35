"""The proof: `infer` read statement by statement until nothing new is found, or something that calls would share."""

from __future__ import annotations

import ast
import importlib
import sys
import types
from typing import Any, Dict, List, Optional, Set

from puna.worker.proof import library
from puna.worker.proof.calls import Calls
from puna.worker.proof.source import Names, NotProved, Sources, defaulted, runs_in_annotations, shown, targets
from puna.worker.proof.values import (
    MISSING,
    NOTHING,
    PLAIN,
    PLAINLY,
    UNIQUE,
    Arguments,
    Atom,
    Live,
    Local,
    Method,
    Own,
    Parent,
    Plain,
    Value,
    is_own_method,
    is_readable,
    of,
    reached,
    value,
)

MOST_DEEP, MOST_STEPS, MOST_PASSES = 25, 300_000, 40


class NameScope:
    """The variables of one call of one function, or of one comprehension in it."""

    def __init__(self, outer: Optional[NameScope], function: Any = None, node: Any = None) -> None:
        self.outer, self.function, self.node = outer, function, node
        found = Names(node) if node is not None else None
        self.names: Set[str] = found.bound if found is not None else set()
        self.others: Dict[str, str] = found.others if found is not None else {}
        self.is_generator = found is not None and found.is_generator
        self.first = ""
        """The name of the first parameter, for `super()`."""
        self.vars: Dict[str, Set[Atom]] = {}
        self.returns: Set[Atom] = set()
        self.yields: Set[Atom] = set()

    @property
    def root(self) -> NameScope:
        """The scope of the outermost function, which was there before the call."""
        return self if self.outer is None else self.outer.root

    @property
    def of_function(self) -> NameScope:
        """The scope that `return` and `yield` belong to."""
        scope = self
        while scope.node is None and scope.outer is not None:
            scope = scope.outer
        return scope


class Reading(Calls):
    """One proof. `prove` returns when calls cannot meet, and raises NotProved otherwise."""

    def __init__(self, sources: Sources) -> None:
        super().__init__(sources, library.Known(sources))
        self._scopes: Dict[Any, NameScope] = {}
        self._stack: List[Any] = []
        self._raised: Set[Atom] = set()
        self._steps = 0
        self.files: List[str] = []
        """Those of the functions under way."""

    def prove(self, function: Any, arguments: Arguments) -> None:
        """Read `function`, called with `arguments`, and all that it calls.

        Raises:
            NotProved: the first thing found that calls would share, or that is not understood.
        """
        start = ast.Name("infer", ast.Load())
        for _ in range(MOST_PASSES):
            self.has_changed = False
            self.call(value(of(function)), arguments, start)
            if not self.has_changed:
                return
        raise NotProved("is too entangled to be read")

    # -- calls of the app's functions

    def run(self, function: Any, arguments: Arguments, node: Any) -> Value:
        try:
            tree = self.sources.tree(function)
        except NotProved as error:
            raise NotProved("calls %s, which %s" % (function.__name__, error.what), node) from None
        positional = [a.arg for a in [*tree.args.posonlyargs, *tree.args.args]]
        values = list(function.__defaults__ or ())
        late = {n: value(of(v)) for n, v in zip(positional[len(positional) - len(values) :], values)}
        late.update((n, value(of(v))) for n, v in (function.__kwdefaults__ or {}).items())
        key = (self.path, id(node), id(function.__code__), id(function.__closure__))
        return self._enter(key, tree, NameScope(None, function, tree), arguments, late)

    def run_local(self, function: Local, arguments: Arguments, node: Any) -> Value:
        tree = function.node
        key = (self.path, id(node), id(tree), id(function.scope))
        late = dict(zip(defaulted(tree.args), function.defaults))
        return self._enter(key, tree, NameScope(function.scope, None, tree), arguments, late)

    def _enter(self, key: Any, tree: Any, fresh: NameScope, arguments: Arguments, late: Dict[str, Value]) -> Value:
        """Read a function's body in the scope that this call of it had before, or in a fresh one."""
        if len(self._stack) > MOST_DEEP or any(one is tree for one in self._stack):
            raise NotProved("calls %s, which calls itself" % getattr(tree, "name", "a lambda"))
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = fresh
            self.has_changed = True
        self._bind(tree.args, arguments, late, scope, key)
        before, self.path = self.path, key
        self._stack.append(tree)
        self.files.append(scope.root.function.__code__.co_filename)
        if isinstance(tree, ast.Lambda):
            self.grow(scope.returns, self.read(tree.body, scope))
        else:
            self._block(tree.body, scope)
        self._stack.pop()
        self.files.pop()
        self.path = before
        if scope.is_generator:
            return value(self.make((key, "generator"), frozenset(scope.yields | scope.returns)))
        results = frozenset(scope.returns) or PLAINLY
        return value(self.make((key, "coroutine"), results)) if isinstance(tree, ast.AsyncFunctionDef) else results

    def _bind(self, args: Any, given: Arguments, late: Dict[str, Value], scope: NameScope, key: Any) -> None:
        places = [a.arg for a in [*args.posonlyargs, *args.args]]
        scope.first = places[0] if places else ""
        more = given.rest | given.named_rest
        for name, what in zip(places, given.positional):
            self._set(scope, name, what)
        named = [*places[len(given.positional) :], *(one.arg for one in args.kwonlyargs)]
        for name in named:
            self._set(scope, name, given.named.get(name, NOTHING) | more | late.get(name, NOTHING))
        if args.vararg:
            rest = frozenset().union(more, *given.positional[len(places) :])
            self._set(scope, args.vararg.arg, value(self.make((key, "args"), rest)))
        if args.kwarg:
            rest = frozenset().union(more, *(v for n, v in given.named.items() if n not in {*places, *named}))
            self._set(scope, args.kwarg.arg, value(self.make((key, "options"), rest)))

    # -- variables

    def _set(self, scope: NameScope, name: str, what: Value) -> None:
        self.grow(scope.vars.setdefault(name, set()), what)

    def _lookup(self, name: str, scope: NameScope, node: Any) -> Value:
        at: Optional[NameScope] = scope
        is_global = False
        while at is not None:
            if name in at.names and not is_global:
                return frozenset(at.vars.get(name, ()))
            is_global |= at.others.get(name) == "global"
            if at.outer is None:
                return self._of_function(name, at.function, is_global, node)
            at = at.outer
        raise NotProved("uses %s, which is not there" % name, node)

    @staticmethod
    def _of_function(name: str, function: Any, is_global: bool, node: Any) -> Value:
        code = function.__code__
        if name in code.co_freevars and not is_global:
            try:
                return value(of(function.__closure__[code.co_freevars.index(name)].cell_contents))
            except ValueError:
                raise NotProved("uses %s, which has no value yet" % name, node) from None
        space = function.__globals__
        builtins = space.get("__builtins__", {})
        builtins = vars(builtins) if isinstance(builtins, types.ModuleType) else builtins
        found = space.get(name, builtins.get(name, MISSING))
        if found is MISSING:
            raise NotProved("uses %s, which is not there" % name, node)
        return value(of(found))

    def _store(self, target: Any, what: Value, scope: NameScope) -> None:
        if isinstance(target, ast.Name):
            self._store_name(target.id, what, scope, target)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for one in target.elts:
                self._store(one.value if isinstance(one, ast.Starred) else one, self._unpacked(one, what), scope)
        elif isinstance(target, ast.Attribute):
            if target.attr.startswith("__"):
                raise NotProved("sets %s" % shown(target), target)
            self.store_attribute(self.read(target.value, scope), target.attr, what, target)
        elif isinstance(target, ast.Subscript):
            whole = self.read(target.value, scope)
            key = self.read(target.slice, scope)
            for atom in whole:
                if isinstance(atom, Own):
                    self.put(atom, what | key)
                elif not (isinstance(atom, Plain) or is_own_method(atom)):
                    raise NotProved("keeps %s" % shown(target), target)
        else:
            raise NotProved("assigns to %s" % shown(target), target)

    def _unpacked(self, target: Any, what: Value) -> Value:
        found = self.elements(what, target)
        return found | value(self.make(target, found)) if isinstance(target, ast.Starred) else found

    def _store_name(self, name: str, what: Value, scope: NameScope, node: Any) -> None:
        at: Optional[NameScope] = scope
        while at is not None:
            if name in at.names:
                self._set(at, name, what)
                return
            if at.others.get(name) == "global":
                break
            at = at.outer
        raise NotProved("keeps %s, which outlives the call" % name, node)

    # -- statements

    def _block(self, body: List[Any], scope: NameScope) -> None:
        for statement in body:
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise NotProved("is too long to be read", statement)
            act = getattr(self, "_s_" + type(statement).__name__, None)
            if act is None:
                raise NotProved("has a statement that is not understood", statement)
            act(statement, scope)

    def _s_Expr(self, node: Any, scope: NameScope) -> None:
        self.read(node.value, scope)

    def _s_Pass(self, node: Any, scope: NameScope) -> None: ...

    _s_Break = _s_Continue = _s_Global = _s_Nonlocal = _s_Pass

    def _s_Return(self, node: Any, scope: NameScope) -> None:
        self.grow(scope.of_function.returns, self.read(node.value, scope) if node.value else PLAINLY)

    def _s_Assign(self, node: Any, scope: NameScope) -> None:
        source = node.value
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(source, ast.Tuple) and len(target.elts) == len(source.elts):
                if not any(isinstance(one, ast.Starred) for one in [*target.elts, *source.elts]):
                    for one, part in zip(target.elts, source.elts):
                        self._store(one, self.read(part, scope), scope)
                    continue
            self._store(target, self.read(source, scope), scope)

    def _s_AnnAssign(self, node: Any, scope: NameScope) -> None:
        if node.value is not None:
            self._store(node.target, self.read(node.value, scope), scope)

    def _s_AugAssign(self, node: Any, scope: NameScope) -> None:
        what = self.read(node.value, scope)
        if not isinstance(node.target, ast.Name):
            self._store(node.target, what | self.elements(_data(what), node.value), scope)
            return
        before = self._lookup(node.target.id, scope, node.target)
        for atom in before:
            if isinstance(atom, Own):
                self.put(atom, what | self.elements(what, node.value))
            elif not (isinstance(atom, Plain) or is_own_method(atom)):
                raise NotProved("changes %s, which other calls share" % node.target.id, node)
        self._store(node.target, before | self._mixed(before | what, node), scope)

    def _s_Delete(self, node: Any, scope: NameScope) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                if target.id not in scope.of_function.names:
                    raise NotProved("deletes %s" % target.id, target)
                continue
            if not isinstance(target, (ast.Attribute, ast.Subscript)):
                raise NotProved("deletes %s" % shown(target), target)
            if any(not isinstance(atom, (Plain, Own)) for atom in self.read(target.value, scope)):
                raise NotProved("deletes %s" % shown(target), target)

    def _s_If(self, node: Any, scope: NameScope) -> None:
        self._truth(node.test, scope)
        self._block([*node.body, *node.orelse], scope)

    _s_While = _s_If

    def _s_For(self, node: Any, scope: NameScope) -> None:
        self._store(node.target, self.elements(self.read(node.iter, scope), node.iter), scope)
        self._block([*node.body, *node.orelse], scope)

    _s_AsyncFor = _s_For

    def _s_With(self, node: Any, scope: NameScope) -> None:
        for item in node.items:
            what = self.read(item.context_expr, scope)
            for atom in what:
                if not (isinstance(atom, (Plain, Own)) or (isinstance(atom, Live) and library.is_lock(atom.it))):
                    raise NotProved("enters %s, of which nothing is known" % shown(item.context_expr), node)
            if item.optional_vars is not None:
                inside = frozenset().union(*(a.holds for a in what if isinstance(a, Own)))
                self._store(item.optional_vars, what | inside, scope)
        self._block(node.body, scope)

    _s_AsyncWith = _s_With

    def _s_Raise(self, node: Any, scope: NameScope) -> None:
        for one in (node.exc, node.cause):
            if one is not None:
                found = self.read(one, scope)
                self.grow(self._raised, found)
                for atom in found:
                    if isinstance(atom, Live) and not isinstance(atom.it, type):
                        raise NotProved("raises %s, which other calls share" % shown(one), node)
                    if isinstance(atom, Live) and self.known.is_apps_class(atom.it):
                        self.call(value(atom), Arguments(), node)

    def _s_Try(self, node: Any, scope: NameScope) -> None:
        self._block(node.body, scope)
        for handler in node.handlers:
            if handler.type is not None:
                self.read(handler.type, scope)
            if handler.name:
                self._store_name(
                    handler.name, value(self.make(handler, frozenset(self._raised), "error"), PLAIN), scope, handler
                )
            self._block(handler.body, scope)
        self._block([*node.orelse, *node.finalbody], scope)

    def _s_Assert(self, node: Any, scope: NameScope) -> None:
        self._truth(node.test, scope)
        if node.msg is not None:
            self.read(node.msg, scope)

    def _s_FunctionDef(self, node: Any, scope: NameScope) -> None:
        if node.decorator_list:
            raise NotProved("decorates a function that it defines", node)
        self._store_name(node.name, self._defined(node, scope), scope, node)

    _s_AsyncFunctionDef = _s_FunctionDef

    def _s_Import(self, node: Any, scope: NameScope) -> None:
        for alias in node.names:
            module, top = self._module(alias.name, node), alias.name.split(".")[0]
            found = module if alias.asname else sys.modules[top]
            self._store_name(alias.asname or top, value(of(found)), scope, node)

    def _s_ImportFrom(self, node: Any, scope: NameScope) -> None:
        if node.level or any(alias.name == "*" for alias in node.names):
            raise NotProved("imports in a way that is not understood", node)
        module = self._module(node.module, node)
        for alias in node.names:
            self._store_name(alias.asname or alias.name, self._of_module(module, alias.name, node), scope, node)

    def _module(self, name: str, node: Any) -> Any:
        if name not in sys.modules and name in library.IMPORTABLE:
            importlib.import_module(name)
            self.known.learn(name)
        if name not in sys.modules:
            raise NotProved("imports %s, which is not loaded yet" % name, node)
        return sys.modules[name]

    # -- expressions

    def read(self, node: Any, scope: NameScope) -> Value:
        """The value of an expression."""
        self._steps += 1
        act = getattr(self, "_e_" + type(node).__name__, None)
        if act is None:
            raise NotProved("has an expression that is not understood", node)
        found: Value = act(node, scope)
        return found

    def _truth(self, node: Any, scope: NameScope) -> Value:
        """An expression that is asked whether it is true."""
        found = self.read(node, scope)
        for atom in found:
            if isinstance(atom, Live) and self.known.is_apps_class(type(atom.it)) and not isinstance(atom.it, type):
                if any(library.static(type(atom.it), name) for name in ("__bool__", "__len__")):
                    raise NotProved("asks whether %s is true, which runs code" % shown(node), node)
        return found

    def _e_Constant(self, node: Any, scope: NameScope) -> Value:
        return PLAINLY

    def _e_Name(self, node: Any, scope: NameScope) -> Value:
        return self._lookup(node.id, scope, node)

    def _e_Attribute(self, node: Any, scope: NameScope) -> Value:
        return self.attribute(self.read(node.value, scope), node.attr, node)

    def _e_Subscript(self, node: Any, scope: NameScope) -> Value:
        whole = self.read(node.value, scope)
        index = node.slice.value if type(node.slice).__name__ == "Index" else node.slice  # before Python 3.9
        key = index.value if isinstance(index, ast.Constant) else MISSING
        self.read(index, scope)
        found = self.element(whole, key, node.value)
        if isinstance(index, ast.Slice):
            return frozenset(a for a in whole if isinstance(a, (Plain, Own))) | value(self.make(node, found))
        return found

    def _e_Index(self, node: Any, scope: NameScope) -> Value:
        return self.read(node.value, scope)

    def _e_Slice(self, node: Any, scope: NameScope) -> Value:
        for one in ast.iter_child_nodes(node):
            self.read(one, scope)
        return PLAINLY

    _e_ExtSlice = _e_Slice  # before Python 3.9

    def _e_Tuple(self, node: Any, scope: NameScope) -> Value:
        found = frozenset().union(*(self.read(one, scope) for one in node.elts))
        if isinstance(node, ast.Tuple) and all(isinstance(a, Plain) for a in found):
            return PLAINLY
        return value(self.make(node, found))

    _e_List = _e_Set = _e_Tuple

    def _e_Dict(self, node: Any, scope: NameScope) -> Value:
        found: Set[Atom] = set()
        for key, one in zip(node.keys, node.values):
            what = self.read(one, scope)
            found |= self.elements(what, one) if key is None else what | self.read(key, scope)
        return value(self.make(node, frozenset(found)))

    def _e_Starred(self, node: Any, scope: NameScope) -> Value:
        return self.elements(self.read(node.value, scope), node.value)

    def _e_BinOp(self, node: Any, scope: NameScope) -> Value:
        return self._mixed(self.read(node.left, scope) | self.read(node.right, scope), node)

    def _e_UnaryOp(self, node: Any, scope: NameScope) -> Value:
        if isinstance(node.op, ast.Not):
            self._truth(node.operand, scope)
            return PLAINLY
        return self._mixed(self.read(node.operand, scope), node)

    def _mixed(self, operands: Value, node: Any) -> Value:
        for atom in reached(operands):
            if not (is_readable(atom) or self.is_inert(atom) or isinstance(atom, (Local, Method))):
                raise NotProved("computes with something that other calls share", node)
        if all(isinstance(a, Plain) for a in operands):
            return value(UNIQUE) if UNIQUE in operands and isinstance(getattr(node, "op", None), ast.Add) else PLAINLY
        return value(self.make(node, operands | self.elements(operands, node)), PLAIN)

    def _e_BoolOp(self, node: Any, scope: NameScope) -> Value:
        return frozenset().union(*(self._truth(one, scope) for one in node.values))

    def _e_Compare(self, node: Any, scope: NameScope) -> Value:
        sides = [self.read(one, scope) for one in (node.left, *node.comparators)]
        if all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            return PLAINLY
        for atom in reached(frozenset().union(*sides)):
            if not (is_readable(atom) or self.is_inert(atom) or isinstance(atom, (Local, Method))):
                if not (isinstance(atom, Live) and isinstance(atom.it, type) and type(atom.it) is type):
                    raise NotProved("compares with something that other calls share", node)
        return PLAINLY | (value(self.make(node)) if any(isinstance(a, Own) for s in sides for a in s) else NOTHING)

    def _e_IfExp(self, node: Any, scope: NameScope) -> Value:
        self._truth(node.test, scope)
        return self.read(node.body, scope) | self.read(node.orelse, scope)

    def _e_NamedExpr(self, node: Any, scope: NameScope) -> Value:
        what = self.read(node.value, scope)
        self._store_name(node.target.id, what, scope, node)
        return what

    def _e_JoinedStr(self, node: Any, scope: NameScope) -> Value:
        parts = [self.read(one, scope) for one in node.values]
        return value(UNIQUE) if value(UNIQUE) in parts else PLAINLY

    def _e_FormattedValue(self, node: Any, scope: NameScope) -> Value:
        what = self.read(node.value, scope)
        if node.format_spec is not None:
            self.read(node.format_spec, scope)
        self.must_be_readable(Arguments([what]), node)
        return value(UNIQUE) if what == value(UNIQUE) and node.format_spec is None else PLAINLY

    def _defined(self, node: Any, scope: NameScope) -> Value:
        if runs_in_annotations(node):
            raise NotProved("has an annotation that runs code", node)
        defaults = [self.read(one, scope) for one in node.args.defaults]
        defaults += [self.read(one, scope) if one is not None else NOTHING for one in node.args.kw_defaults]
        return value(Local(node, scope, tuple(defaults)))

    _e_Lambda = _defined

    def _e_Await(self, node: Any, scope: NameScope) -> Value:
        found: Set[Atom] = set()
        for atom in self.read(node.value, scope):
            if not isinstance(atom, (Plain, Own)):
                raise NotProved("waits for %s, which other calls share" % shown(node), node)
            found |= {PLAIN} | (set(atom.holds) | {atom} if isinstance(atom, Own) else set())
        return frozenset(found)

    def _e_Yield(self, node: Any, scope: NameScope) -> Value:
        if node.value is not None:
            self.grow(scope.of_function.yields, self.read(node.value, scope))
        return PLAINLY

    def _e_YieldFrom(self, node: Any, scope: NameScope) -> Value:
        found = self.elements(self.read(node.value, scope), node.value)
        self.grow(scope.of_function.yields, found)
        return found

    def _e_ListComp(self, node: Any, scope: NameScope) -> Value:
        key = (self.path, id(node), "scope")
        inner = self._scopes.get(key)
        if inner is None:
            inner = self._scopes[key] = NameScope(scope)
            inner.names = targets(node)
        at = scope
        for generator in node.generators:
            self._store(generator.target, self.elements(self.read(generator.iter, at), generator.iter), inner)
            at = inner
            for condition in generator.ifs:
                self._truth(condition, inner)
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        found = frozenset().union(*(self.read(one, inner) for one in results))
        return value(self.make(node, found))

    _e_SetComp = _e_DictComp = _e_GeneratorExp = _e_ListComp

    # -- calls

    def _e_Call(self, node: Any, scope: NameScope) -> Value:
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
            return self._zero_super(node, scope)
        if isinstance(node.func, ast.Attribute):
            whole = self.read(node.func.value, scope)
            arguments = self._arguments(node, scope)
            return frozenset().union(*(self._call_attribute(atom, node.func, arguments, node) for atom in whole))
        callee = self.read(node.func, scope)
        return self.call(callee, self._arguments(node, scope), node)

    def _call_attribute(self, atom: Atom, func: Any, arguments: Arguments, node: Any) -> Value:
        name = func.attr
        if isinstance(atom, Plain) or (isinstance(atom, Own) and atom.cls is None):
            if name.startswith("__"):
                raise NotProved("calls %s" % shown(func), node)
            return self.method(atom, name, arguments, node)
        callee = self.attribute_of(atom, name, func)
        if isinstance(atom, Own):  # the class's method, else what the call has put there itself
            callee = frozenset(a for a in callee if not isinstance(a, (Plain, Own)))
            if not callee:
                raise NotProved("calls %s, of which nothing is known" % shown(func), node)
        return self.call(callee, arguments, node)

    def _arguments(self, node: Any, scope: NameScope) -> Arguments:
        made = Arguments()
        for one in node.args:
            if isinstance(one, ast.Starred) or made.rest:
                made.rest = made.rest | self.read(one, scope)
            else:
                made.positional.append(self.read(one, scope))
        for keyword in node.keywords:
            what = self.read(keyword.value, scope)
            if keyword.arg is None:
                made.named_rest = made.named_rest | self.elements(what, keyword.value)
            else:
                made.named[keyword.arg] = what
        return made

    def _zero_super(self, node: Any, scope: NameScope) -> Value:
        root = scope.root
        (cls, *_) = self._of_function("__class__", root.function, False, node)
        if not isinstance(cls, Live):
            raise NotProved("uses super in a way that is not understood", node)
        first = frozenset(root.vars.get(root.first, ()))
        return frozenset(Parent(cls.it, a) for a in first if isinstance(a, (Live, Own)))


def _data(what: Value) -> Value:
    return frozenset(a for a in what if isinstance(a, (Plain, Own)) or (isinstance(a, Live) and is_readable(a)))

"""The contract's typed variant: pydantic classes decorated `@inferless.request` and `@inferless.response` in app.py."""

from __future__ import annotations

import ast
from typing import Any, Dict, List, Optional, Tuple, Union, get_type_hints

from puna.worker.app.schema import AppInput, AppSchema, SchemaFault

# Field type -> datatype and the example that the platform makes up where there is no default.
TYPES: Dict[Any, Tuple[str, Any]] = {
    str: ("STRING", "A sample line"),
    int: ("INT32", 1),
    float: ("FP64", 0.5),
    bool: ("BOOL", True),
}
MISSING = object()


class Typed:
    """The request and response classes of one app."""

    def __init__(self, request: Any, response: Any) -> None:
        self.request, self.response = request, response
        hints = get_type_hints(request)
        # Pydantic 2 insists on an Optional field without a default; the platform lets requests leave it out.
        self.unset = {n: None for n in _fields(request) if _is_optional(hints[n]) and _default(request, n) is MISSING}

    def to_request(self, values: Dict[str, Any]) -> Any:
        """The object that `infer` gets. Raises what pydantic raises."""
        return self.request(**dict(self.unset, **values))

    def from_response(self, result: Any) -> Any:
        """The dict of outputs; what is no response object is left as it is, for the error message."""
        if not isinstance(result, self.response):
            return result
        return {name: getattr(result, name) for name in _fields(self.response)}


def find(source: bytes, module: Any) -> Tuple[Optional[Typed], Dict[str, Any]]:
    """The decorated classes of app.py, found in its text as the platform does, and the flags of `@inferless.config`."""
    marked: Dict[str, str] = {}
    for node in ast.parse(source).body:
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            mark = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(mark, ast.Attribute) and isinstance(node, ast.ClassDef):
                marked[mark.attr] = node.name
    flags: Dict[str, Any] = {}
    if "config" in marked:
        config = getattr(module, marked["config"])
        names = set(_fields(config)) | {n for n in vars(config) if not n.startswith("_")}
        flags = {name.upper(): _default(config, name) for name in names}
    if not {"request", "response"} <= set(marked):
        return None, flags
    return Typed(getattr(module, marked["request"]), getattr(module, marked["response"])), flags


def schema_of(request: Any, flags: Dict[str, Any]) -> AppSchema:
    """The inputs that a request class declares, by the platform's rules.

    Raises:
        SchemaFault: a field is of a type that the platform does not know.
    """
    hints = get_type_hints(request)
    return AppSchema([_input(request, name, hints[name]) for name in _fields(request)], flags, None)


def _input(request: Any, name: str, hint: Any) -> AppInput:
    required = not _is_optional(hint)
    if not required:
        hint = next(a for a in hint.__args__ if a is not type(None))
    is_list = getattr(hint, "__origin__", None) in (list, List)
    if is_list:
        hint = hint.__args__[0]
    if hint not in TYPES:
        raise SchemaFault(
            "Data type - unknown - not supported: input --> %s is %s; use str, int, float, bool, a List of one of them "
            "or Optional" % (name, getattr(hint, "__name__", hint) if isinstance(hint, type) else hint)
        )
    datatype, made_up = TYPES[hint]
    example = _default(request, name)
    if example is MISSING or (example is None and required):
        example = None if not required else made_up
    if example is not None and not isinstance(example, list):
        example = [example]
    return AppInput(name, datatype, [-1] if is_list else [1], required, example)


def _is_optional(hint: Any) -> bool:
    # `X | None` is no Union before 3.14; both have __args__.
    arguments = getattr(hint, "__args__", ())
    is_union = getattr(hint, "__origin__", None) is Union or type(hint).__name__ == "UnionType"
    return is_union and len(arguments) == 2 and type(None) in arguments


def _fields(model: Any) -> Dict[str, Any]:
    """Field name -> pydantic's description of it, in pydantic 2 and 1; empty for a plain class."""
    found: Dict[str, Any] = getattr(model, "model_fields", None) or getattr(model, "__fields__", None) or {}
    return found


def _default(model: Any, name: str) -> Any:
    field = _fields(model).get(name)
    if field is None:
        return getattr(model, name, MISSING)
    if callable(getattr(field, "is_required", None)):  # pydantic 2
        return MISSING if field.is_required() else field.get_default(call_default_factory=True)
    return MISSING if field.required else field.get_default()

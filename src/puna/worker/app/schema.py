"""The inputs that an app declares: in input_schema.py run as Python, in input.json, or in pydantic classes."""

from __future__ import annotations

import ast
import json
import math
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union, get_type_hints

NUMPY_NAMES = {
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8", "UINT16": "uint16",
    "UINT32": "uint32", "UINT64": "uint64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BF16": "float32",  # numpy has no bfloat16
}  # fmt: skip
KINDS = {"STRING": "text", "BYTES": "text", "BOOL": "bool", **dict.fromkeys(NUMPY_NAMES, "number")}
DEFAULT_BATCH_WINDOW_MS = 500.0
OPENAI = ("OPENAI_CLIENT_COMPATIBLITY", "OPENAI_CLIENT_COMPATIBILITY")  # the platform's spelling, and the word
FLAGS = ("BATCH_SIZE", "BATCH_WINDOW", "IS_STREAMING_OUTPUT", *OPENAI)


class SchemaFault(Exception):
    """The schema file is wrong; the text is the platform's where the platform has one."""


class AppInput(NamedTuple):
    """One declared input."""

    name: str
    datatype: str
    shape: List[int]
    required: bool
    example: Optional[List[Any]]

    def sample(self) -> List[Any]:
        """The example, or a made-up value where there is none: what the platform takes for a field without default."""
        if self.example is not None:
            return self.example
        made_up: Any = {"text": "A sample line", "bool": True, "number": 1}[KINDS[self.datatype]]
        return [made_up] * math.prod([abs(n) for n in self.shape])

    def concrete(self, size: int) -> List[int]:
        """The declared shape with its -1 filled in for `size` values, or as it is when that does not go."""
        fixed = math.prod([n for n in self.shape if n != -1])
        if self.shape.count(-1) != 1 or fixed == 0 or size % fixed:
            return self.shape if -1 not in self.shape else [size]
        return [size // fixed if n == -1 else n for n in self.shape]


class AppSchema:
    """All inputs, the flags, and the outputs when they are known."""

    def __init__(self, inputs: List[AppInput], flags: Dict[str, Any], outputs: Optional[List[Dict[str, Any]]]) -> None:
        """Flags are read as `puna deploy` reads them before the app runs: a test holds both readers to one table.

        Raises:
            SchemaFault: a flag makes no sense.
        """
        self.inputs, self.outputs, self.flags = inputs, outputs, {name: flags.get(name) for name in FLAGS}
        self.batch_size = _batch_size(flags.get("BATCH_SIZE"))
        self.batch_window_ms = _batch_window_ms(flags.get("BATCH_WINDOW"))
        self.streaming = bool(flags.get("IS_STREAMING_OUTPUT"))
        self.openai = any(bool(flags.get(name)) for name in OPENAI)

    def as_json(self) -> Dict[str, Any]:
        """The schema as the contract between worker and control plane has it."""
        flags = {"batch_size": self.batch_size, "batch_window_ms": self.batch_window_ms}
        flags.update(streaming=self.streaming, openai=self.openai)
        return {"inputs": [i._asdict() for i in self.inputs], "flags": flags, "outputs": self.outputs}


def _batch_size(value: Any) -> int:
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise SchemaFault("BATCH_SIZE is %r: it must be a whole number, 0 for no batches" % (value,))
    return value


def _batch_window_ms(value: Any) -> float:
    if value is None:
        return DEFAULT_BATCH_WINDOW_MS
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise SchemaFault("BATCH_WINDOW is %r: it must be milliseconds, 0 or more" % (value,))
    return float(value)


def read(folder: str) -> AppSchema:
    """The schema of the app in `folder`; one without inputs when no file declares any.

    Raises:
        SchemaFault: a declaration is wrong; the text names the input.
        Exception: whatever input_schema.py itself raises.
    """
    path = os.path.join(folder, "input_schema.py")
    if os.path.exists(path):
        return read_python(path)
    path = os.path.join(folder, "input.json")
    if os.path.exists(path):
        return read_json(path, os.path.join(folder, "output.json"))
    return AppSchema([], {}, None)


def read_python(path: str) -> AppSchema:
    """Run input_schema.py and read INPUT_SCHEMA and the flags beside it."""
    with open(path, "rb") as file:
        source = file.read()
    names: Dict[str, Any] = {"__name__": "input_schema", "__file__": path}
    exec(compile(source, path, "exec"), names)
    declared = names.get("INPUT_SCHEMA", {})
    if not isinstance(declared, dict):
        raise SchemaFault("INPUT_SCHEMA must be a dict of inputs, it is a %s" % type(declared).__name__)
    return AppSchema([_input(str(name), entry) for name, entry in declared.items()], names, None)


def read_json(path: str, output_path: str) -> AppSchema:
    """Read input.json and, when there, output.json: `{"inputs": [{"name", "shape", "datatype", "data"}]}`."""
    inputs = [_input(str(entry.get("name")), entry) for entry in _entries(path, "inputs")]
    outputs = None
    if os.path.exists(output_path):
        keys = ("name", "datatype", "shape")
        outputs = [{key: entry.get(key) for key in keys} for entry in _entries(output_path, "outputs")]
    return AppSchema(inputs, {}, outputs)


def _entries(path: str, key: str) -> List[Dict[str, Any]]:
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)[key]
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaFault("%s is not {%r: [...]}: %s" % (os.path.basename(path), key, error)) from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.get("name") for e in entries):
        raise SchemaFault("%s: each of %r needs a name" % (os.path.basename(path), key))
    return entries


def _input(name: str, entry: Any) -> AppInput:
    if not isinstance(entry, dict):
        raise SchemaFault("Data type not specified for input --> %s" % name)
    # Without `required` it must be sent, but the platform does not insist on shape and example.
    required, is_strict = bool(entry.get("required", True)), bool(entry.get("required", False))
    datatype = entry.get("datatype")
    if datatype is None:
        raise SchemaFault("Data type not specified for input --> %s" % name)
    if str(datatype).upper() not in KINDS:
        raise SchemaFault(
            "Data type %s not supported for input --> %s; use one of %s" % (datatype, name, ", ".join(KINDS))
        )
    example = entry.get("example", entry.get("data"))
    if example is None and is_strict:
        raise SchemaFault("example not specified for input --> %s" % name)
    if example is not None:
        example = list(example) if isinstance(example, (list, tuple)) else [example]
    shape = entry.get("shape")
    if shape is None and not is_strict:
        shape = [1] if example is None or len(example) == 1 else [-1]  # seen in the wild on optional inputs
    if shape is None:
        raise SchemaFault("shape not specified for input --> %s" % name)
    if not isinstance(shape, (list, tuple)) or not shape:
        raise SchemaFault("shape not specified as a python list for input --> %s" % name)
    for size in shape:
        if type(size) is not int or not (size > 0 or size == -1):
            raise SchemaFault("shape of input --> %s has %r: sizes are whole numbers over 0, or -1" % (name, size))
    return AppInput(name, str(datatype).upper(), list(shape), required, example)


# Field type -> datatype and the example that the platform makes up where there is no default.
TYPES: Dict[Any, Tuple[str, Any]] = {
    str: ("STRING", "A sample line"),
    int: ("INT32", 1),
    float: ("FP64", 0.5),
    bool: ("BOOL", True),
}
MISSING = object()


class Typed:
    """The contract's typed variant: classes decorated `@inferless.request` and `@inferless.response` in app.py."""

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


def find_typed(source: bytes, module: Any) -> Tuple[Optional[Typed], Dict[str, Any]]:
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


def typed_schema(request: Any, flags: Dict[str, Any]) -> AppSchema:
    """The inputs that a request class declares, by the platform's rules.

    Raises:
        SchemaFault: a field is of a type that the platform does not know.
    """
    hints = get_type_hints(request)
    return AppSchema([_typed_input(request, name, hints[name]) for name in _fields(request)], flags, None)


def _typed_input(request: Any, name: str, hint: Any) -> AppInput:
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

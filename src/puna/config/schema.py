"""An app's inputs: read from input_schema.py without running it, and turned into request bodies."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.errors import SchemaError, nearest

_INT = {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
_FLOAT = {"FP16", "FP32", "FP64", "BF16"}
DATATYPES = ("STRING", "BYTES", "BOOL", *sorted(_INT), *sorted(_FLOAT))
MAX_BYTES = 1 << 20
DEFAULT_BATCH_WINDOW_MS = 500.0
OPENAI = ("OPENAI_CLIENT_COMPATIBLITY", "OPENAI_CLIENT_COMPATIBILITY")  # the platform's spelling, and the word
DECLARED = frozenset({"INPUT_SCHEMA", "BATCH_SIZE", "BATCH_WINDOW", "IS_STREAMING_OUTPUT", *OPENAI})
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Input:
    """One input: a tensor of `datatype`; `shape` may hold -1 for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None = (1,)
    required: bool = True
    example: tuple[Any, ...] | None = None

    @property
    def wire_type(self) -> str:
        """The datatype's name in a request body: text travels as BYTES."""
        return "BYTES" if self.datatype == "STRING" else self.datatype


@dataclass(frozen=True)
class Output:
    """One output, as one run on the examples showed it."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Flags:
    """The form of call that `infer` takes."""

    batch_size: int | None = None
    batch_window_ms: float = DEFAULT_BATCH_WINDOW_MS
    streaming: bool = False
    openai: bool = False


@dataclass(frozen=True)
class Schema:
    """Every input of an app, in the order written."""

    inputs: tuple[Input, ...]
    flags: Flags = field(default_factory=Flags)
    outputs: tuple[Output, ...] | None = None

    def example_request(self) -> dict[str, Any]:
        """A KServe v2 body from the examples; inputs without one are left out."""
        return self._body({i.name: list(i.example) for i in self.inputs if i.example is not None})

    def request_from_pairs(self, pairs: Mapping[str, object]) -> dict[str, Any]:
        """A KServe v2 body from names and values, where a value may be text as typed on a command line.

        Raises:
            SchemaError: an unknown name, a missing required input, or a value that is not of its datatype.
        """
        by_name = {i.name: i for i in self.inputs}
        for name in pairs:
            if name not in by_name:
                hint = nearest(name, by_name) or f"inputs: {', '.join(by_name) or 'none'}"
                raise SchemaError(f"unknown input `{name}`", hint)
        for item in self.inputs:
            if item.required and item.name not in pairs:
                raise SchemaError(f"input `{item.name}` is missing", f"add {item.name}={_sample(item)}")
        return self._body({name: _elements(by_name[name], value) for name, value in pairs.items()})

    def _body(self, values: Mapping[str, list[Any]]) -> dict[str, Any]:
        inputs = []
        for item in self.inputs:
            if item.name not in values:
                continue
            data = list(_flat(values[item.name]))
            shape = _concrete(item, len(data))
            if self.flags.batch_size is not None:
                shape = [1, *shape]  # each request is one row of a batch
            inputs.append({"name": item.name, "shape": shape, "datatype": item.wire_type, "data": data})
        return {"inputs": inputs}

    def describe(self) -> str:
        """One line an input: name, datatype, shape, whether it may be left out."""
        lines = []
        for item in self.inputs:
            shape = list(item.shape) if item.shape is not None else [1]
            lines.append(f"{item.name}: {item.datatype} {shape}" + ("" if item.required else " (optional)"))
        return "\n".join(lines)


def read_literal(path: Path) -> Schema | None:
    """The schema in an input_schema.py; nothing is executed, so None when it is not written as plain values.

    Raises:
        SchemaError: the file is not Python, or what it says is no schema; the platform's own words.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `"\d"` in somebody's example is not Puna's business
            with path.open(encoding="utf-8") as file:
                text = file.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                raise SchemaError(f"{path.name} is over {MAX_BYTES >> 20} MiB", "shorten its examples")
            tree = ast.parse(text)
    except FileNotFoundError:
        return None
    except (RecursionError, MemoryError):
        raise SchemaError(f"{path.name} is nested too deeply", f"correct {path.name}") from None
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise SchemaError(f"{path.name}{line} is not Python: {error}", f"python -m py_compile {path}") from None
    plain = [(target, value) for node in tree.body for target, value in _assignments(node) if target.id in DECLARED]
    if _is_touched(tree, {id(target) for target, _ in plain}):
        return None
    found: dict[str, Any] = {}
    for target, value in plain:
        try:
            found[target.id] = ast.literal_eval(value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            return None
    return from_literal(found) if "INPUT_SCHEMA" in found else None


def _assignments(node: ast.stmt) -> Iterator[tuple[ast.Name, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target, node.value
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target, node.value


def _is_touched(tree: ast.Module, plain: set[int]) -> bool:
    """True when what is declared may come out other than it is written: under `if`, changed later, or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in DECLARED and id(node) not in plain:
            return True
        if isinstance(node, ast.Import | ast.ImportFrom):
            if {alias.asname or alias.name for alias in node.names} & (DECLARED | {"*"}):
                return True
    return False


def from_literal(values: Mapping[str, Any]) -> Schema:
    """A schema from the values of input_schema.py: INPUT_SCHEMA and the flags.

    Raises:
        SchemaError: in the platform's words, naming the input.
    """
    declared = values.get("INPUT_SCHEMA")
    if not isinstance(declared, Mapping):
        raise SchemaError("INPUT_SCHEMA must be a dictionary of inputs", 'write INPUT_SCHEMA = {"prompt": {...}}')
    inputs = tuple(_input(str(name), spec) for name, spec in declared.items())
    return Schema(inputs, _flags(values))


def _input(name: str, spec: object) -> Input:
    if not isinstance(spec, Mapping):
        raise SchemaError(f"Data type not specified for input --> {name}", "write a dictionary for each input")
    if spec.get("datatype") is None:
        raise SchemaError(f"Data type not specified for input --> {name}", f"one of {', '.join(DATATYPES)}")
    datatype = str(spec["datatype"]).upper()
    if datatype not in DATATYPES:
        hint = {"INT": "did you mean `INT32`?", "FLOAT": "did you mean `FP32`?", "STR": "did you mean `STRING`?"}
        why = hint.get(datatype) or nearest(datatype, DATATYPES) or f"one of {', '.join(DATATYPES)}"
        raise SchemaError(f"Data type {spec['datatype']} not supported for input --> {name}", why)
    # An input that does not say `required` is required in a request, but its shape and example are not insisted on.
    strict = spec.get("required") is True
    example = spec.get("example", spec.get("data"))
    if example is None and strict:
        raise SchemaError(f"example not specified for input --> {name}", "add 'example': [...]")
    item = Input(
        name, datatype, _shape(name, spec, strict), bool(spec.get("required", True)), _example(name, datatype, example)
    )
    if item.example is not None:
        _concrete(item, sum(1 for _ in _flat(item.example)))
    return item


def _shape(name: str, spec: Mapping[str, Any], strict: bool) -> tuple[int, ...] | None:
    shape = spec.get("shape")
    if shape is None:
        if strict:
            raise SchemaError(f"shape not specified for input --> {name}", "add 'shape': [1]")
        return None
    if not isinstance(shape, list | tuple) or not shape:
        raise SchemaError(f"shape not specified as a python list for input --> {name}", "write 'shape': [1]")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not (size > 0 or size == -1):
            raise SchemaError(
                f"shape of input --> {name} has {size!r}", "sizes are whole numbers over 0, or -1 for any length"
            )
    return tuple(shape)


def _example(name: str, datatype: str, example: object) -> tuple[Any, ...] | None:
    if example is None:
        return None
    values = tuple(example) if isinstance(example, list | tuple) else (example,)
    for value in _flat(values):
        text = isinstance(value, str | bytes)
        wrong = text and not _is_number(value) if datatype not in ("STRING", "BYTES") else isinstance(value, Mapping)
        if wrong:
            raise SchemaError(f"example {value!r} is no {datatype} for input --> {name}", "correct the example")
    return values


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value).lower() in _TRUE + _FALSE
    return True


def _flags(values: Mapping[str, Any]) -> Flags:
    """As the worker reads them when it has run the file."""
    size, window = values.get("BATCH_SIZE"), values.get("BATCH_WINDOW")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise SchemaError(f"BATCH_SIZE is {size!r}", "a whole number, 0 for no batches")
    window = DEFAULT_BATCH_WINDOW_MS if window is None else window
    if not isinstance(window, int | float) or isinstance(window, bool) or not 0 <= window < math.inf:
        raise SchemaError(f"BATCH_WINDOW is {window!r}", "milliseconds, 0 or more")
    is_openai = any(bool(values.get(name)) for name in OPENAI)
    return Flags(size or None, window, bool(values.get("IS_STREAMING_OUTPUT")), is_openai)


def from_json(value: Mapping[str, Any]) -> Schema:
    """A schema as the worker describes it.

    Raises:
        SchemaError: the description is none.
    """
    try:
        inputs = tuple(
            Input(
                i["name"],
                i["datatype"],
                tuple(i["shape"]) if i.get("shape") is not None else None,
                bool(i.get("required", True)),
                tuple(i["example"]) if i.get("example") is not None else None,
            )
            for i in value["inputs"]
        )
        outputs = value.get("outputs")
        if outputs is not None:
            outputs = tuple(Output(o["name"], o["datatype"], tuple(o["shape"])) for o in outputs)
        flags = value.get("flags") or {}
        return Schema(
            inputs,
            Flags(
                flags.get("batch_size") or None,
                DEFAULT_BATCH_WINDOW_MS if flags.get("batch_window_ms") is None else flags["batch_window_ms"],
                bool(flags.get("streaming")),
                bool(flags.get("openai")),
            ),
            outputs,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(f"the app's description of its inputs cannot be read: {error!r}") from None


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _concrete(item: Input, count: int) -> list[int]:
    """The shape of a tensor of `count` elements, with -1 resolved."""
    shape = list(item.shape) if item.shape is not None else [1 if count == 1 else -1]
    fixed = math.prod(size for size in shape if size > 0)
    free = [i for i, size in enumerate(shape) if size < 0]
    if (not free and fixed != count) or (free and count % fixed):
        wanted = f"a multiple of {fixed}" if free else fixed
        raise SchemaError(f"input --> {item.name} has {count} elements, its shape {shape} holds {wanted}")
    for place in free:  # the first takes the length, any other is 1
        shape[place] = count // fixed if place == free[0] else 1
    return shape


def _elements(item: Input, value: object) -> list[Any]:
    """The elements of one input from a Python value or from text."""
    scalar = item.shape is None or item.shape == (1,)
    if isinstance(value, str) and not scalar:
        if not value.lstrip().startswith("["):
            value = value.split(",")
        else:
            try:
                value = json.loads(value)
            except ValueError as error:
                raise SchemaError(f"input `{item.name}` is no JSON list: {error}", f"{item.name}='[1, 2]'") from None
    values = value if isinstance(value, list | tuple) else [value]
    return [_element(item, v) for v in _flat(values)]


def _element(item: Input, value: object) -> Any:
    try:
        if item.datatype in _INT:
            if isinstance(value, float) and value != int(value):
                raise ValueError
            return int(value)  # type: ignore[call-overload]
        if item.datatype in _FLOAT:
            return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise SchemaError(f"input `{item.name}` is {value!r}, which is no {item.datatype}") from None
    if item.datatype == "BOOL":
        word = str(value).strip().lower()
        if word not in _TRUE + _FALSE:
            raise SchemaError(f"input `{item.name}` is {value!r}, which is no BOOL", f"{item.name}=true")
        return word in _TRUE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sample(item: Input) -> str:
    first = next(_flat(item.example), "...") if item.example else "..."
    text = str(first)
    return text if re.fullmatch(r"[\w.]+", text) else json.dumps(text[:60], ensure_ascii=False)

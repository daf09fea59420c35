"""Reading a mapping that a person wrote into a frozen dataclass, with errors that name the key."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from puna.errors import UsageError, nearest

T = TypeVar("T")
MAX_YAML_BYTES = 64 * 1024
"""Reading takes a second at this size, and holds everybody up; people write a few hundred lines."""


class _OnceOnly(yaml.SafeLoader):
    """Plain values only, and no key twice in one mapping: people read the first, YAML takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"found `{key.value}` twice", key.start_mark)
                seen.add(key.value)
        return node


def parse_yaml(text: str, what: str, error: type[UsageError]) -> Any:
    """The value that YAML text holds; `what` is named in the error.

    Raises:
        UsageError: as `error`, when the text is too long or is not YAML.
    """
    if len(text) > MAX_YAML_BYTES:
        raise error(f"{what} is over {MAX_YAML_BYTES >> 10} KiB", "shorten it")
    try:
        return yaml.load(text, _OnceOnly)
    except Exception as problem:  # noqa: BLE001 - whoever sent it sees the error; PyYAML raises what it trips over
        why = "it is nested too deeply" if isinstance(problem, RecursionError) else " ".join(str(problem).split())
        raise error(f"{what} is not YAML: {why}") from None


def read_yaml(path: Path, error: type[UsageError]) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UsageError: as `error`, when the file is missing, is not YAML or is not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            value = parse_yaml(file.read(MAX_YAML_BYTES + 1), str(path), error)
    except FileNotFoundError:
        raise error(f"{path} does not exist", "check the path") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}", "check the path") from None
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not YAML: {' '.join(str(problem).split())}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise error(f"{path} must hold keys and values, not a {type(value).__name__}")
    return value


def build(cls: type[T], values: Mapping[str, Any], where: str, error: type[UsageError]) -> T:
    """A dataclass from a mapping; nested dataclasses from nested mappings; numbers and lists are converted.

    Raises:
        UsageError: as `error`, for an unknown key (with the nearest valid one), a missing key or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in known:
            hint = nearest(str(key), known) or f"valid keys: {', '.join(known)}"
            raise error(f"unknown key `{prefix}{key}`", hint)
    found = {key: _convert(hints[key], value, prefix + key, error) for key, value in values.items()}
    for name, f in known.items():
        no_default = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if no_default and name not in found:
            raise error(f"`{prefix}{name}` is missing", f"add `{name}:`" + (f" under `{where}:`" if where else ""))
    return cls(**found)


def _convert(hint: Any, value: Any, where: str, error: type[UsageError]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where, error)
    if origin is typing.Literal:
        if value not in args:
            hint_text = nearest(str(value), map(str, args)) or f"one of {', '.join(map(str, args))}"
            raise error(f"`{where}` is {value!r}", hint_text)
        return value
    if dataclasses.is_dataclass(hint):
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise error(f"`{where}` must hold keys and values, not {value!r}")
        return build(hint, value, where, error)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            advice = f"write [{value}]" if isinstance(value, str) else ""
            raise error(f"`{where}` must be a list, not {value!r}", advice)
        return tuple(_convert(args[0], item, f"{where}[{i}]", error) for i, item in enumerate(value))
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise error(f"`{where}` must hold keys and values, not {value!r}")
        return dict(value)
    return _scalar(hint, value, where, error)


def _scalar(hint: Any, value: Any, where: str, error: type[UsageError]) -> Any:
    # YAML 1.1 reads `8e-6` as text and people write numbers in quotes: accept what converts without loss.
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            number = float(value)
            if math.isfinite(number) and (hint is float or number.is_integer()):
                return hint(number)
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise error(f"`{where}` must be {_PLAIN[hint]}, not {value!r}")


_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

"""Reading what people write: YAML, and plain values into models, with errors that name the key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BeforeValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from puna.errors import UsageError, nearest

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
    """Parse the one value that YAML text holds; `what` is named in the error.

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
    """Read the mapping in a YAML file; an empty file is an empty mapping.

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


def shown(value: object) -> str:
    """Show a value in a message; a list or mapping by its kind: YAML's aliases make a page whose repr fills memory."""
    if isinstance(value, Mapping | list | tuple):
        return "a list" if not isinstance(value, Mapping) else "keys and values"
    return repr(value)[:200]


def _number(complaint: str) -> BeforeValidator:
    """Turn text into the number that it says: people quote numbers, and YAML 1.1 reads `8e-6` as text."""

    def plain(value: object) -> object:
        if isinstance(value, bool):
            raise PydanticCustomError(complaint, "true and false are no numbers")
        if isinstance(value, str):
            for kind in (int, float):
                with contextlib.suppress(ValueError):
                    return kind(value)
        return value

    return BeforeValidator(plain)


# Last among a field's annotations: the schema of the API shows limits only of what stands before them.
Whole = _number("int_type")
Number = _number("float_type")

# pydantic's kinds of complaint, by how they begin -> what is said.
_TYPES = {
    "int_": "be a whole number",
    "float_": "be a number",
    "finite_": "be a number",
    "bool_": "be true or false",
    "string_": "be text",
    "tuple_": "be a list",
}
_LIMITS = {
    "greater_than_equal": "be at least {ge}",
    "greater_than": "be over {gt}",
    "less_than_equal": "be at most {le}",
    "less_than": "be under {lt}",
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


@dataclass(frozen=True)
class Origin:
    """The place where values were written: its words for keys, and the kind of error that it gets."""

    error: type[UsageError] = UsageError
    words: Mapping[str, str] = field(default_factory=dict)
    """Key -> how it is shown, where that is not its own name."""
    prefix: str = ""
    """Stands before a key that has no word of its own."""

    def refusal(self, problem: ValidationError, model: type) -> UsageError:
        """Translate pydantic's complaint about a `model` into an error that names the key."""
        said = first(problem)
        kind, path, value = said["type"], said["loc"], said["input"]
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        key = self.words.get(name, f"`{self.prefix}{name}`")
        if kind in _UNKNOWN:
            keys = _keys(model, path[:-1])
            return self.error(f"unknown key {key}", nearest(str(path[-1]), keys) or f"valid keys: {', '.join(keys)}")
        if kind == "missing":
            inside = name.rpartition(".")[0]
            return self.error(f"{key} is missing", f"add `{path[-1]}:`" + (f" under `{inside}:`" if inside else ""))
        if kind in _LIMITS:
            return self.error(f"{self.words.get(name, name)} must {_LIMITS[kind].format_map(said['ctx'])}")
        if kind == "literal_error":
            valid = re.findall("'([^']*)'", said["ctx"]["expected"])
            return self.error(f"{key} is {shown(value)}", nearest(str(value), valid) or f"one of {', '.join(valid)}")
        must = next((text for start, text in _TYPES.items() if kind.startswith(start)), "hold keys and values")
        hint = f"write [{value}]" if kind == "tuple_type" and isinstance(value, str) else ""
        return self.error(f"{key} must {must}, not {shown(value)}", hint)


def first(problem: ValidationError) -> ErrorDetails:
    """Return the complaint to show: a misspelt key first, as what is missing or wrong elsewhere may follow from it."""
    return min(problem.errors(include_url=False), key=lambda one: one["type"] not in _UNKNOWN)


def _keys(model: Any, path: tuple[int | str, ...]) -> list[str]:
    """The keys of a model, or of the one that lies under `path` in it."""
    for part in path:
        model = model.__pydantic_fields__[part].annotation
    return list(model.__pydantic_fields__)

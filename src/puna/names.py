"""The grammar of every name that users give, and the nearest name to a text that is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puna.errors import UsageError

Kind = Literal["endpoint", "runtime", "secret", "volume", "recipe", "model", "hub", "alias", "variable"]


@dataclass(frozen=True)
class Grammar:
    """One kind's form, and the rule as shown to a user who wrote something else."""

    form: str
    """A regular expression for the whole name, in what Python, JSON schema and JavaScript have in common."""
    rule: str


# They stand in addresses, in paths and as labels of metrics.
_LABEL = Grammar(
    r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?", "lower-case letters, digits and dashes, at most 48, e.g. my-app"
)
# The hub's rule, so that a name also works there and as a cache folder, `models--owner--name`.
_PART = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_NO_RUNS = r"(?!.*(\.\.|--))"

GRAMMARS: dict[Kind, Grammar] = {
    "endpoint": _LABEL,
    "runtime": _LABEL,
    "secret": _LABEL,
    "volume": Grammar(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "letters, digits, `-`, `_` and `.`, at most 63, e.g. data"),
    "recipe": Grammar(
        r"[a-z0-9][a-z0-9._-]{0,62}", "lower-case letters, digits, `.`, `_` and `-`, at most 63, e.g. llama3.1-chat"
    ),
    "model": Grammar(
        rf"{_NO_RUNS}{_PART}/{_PART}",
        "owner/name, each of letters, digits, `.`, `_` and `-` (no `--`, no `..`), e.g. acme/llama3-chat",
    ),
    "hub": Grammar(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", "owner/name, as on the hub, e.g. meta-llama/Meta-Llama-3-8B"),
    "alias": Grammar(r"[a-z][a-z0-9_-]{0,62}", "lower-case letters, digits, `_` and `-`, e.g. champion"),
    "variable": Grammar(r"[A-Za-z_][A-Za-z0-9_]*", "letters, digits and `_`, no digit first, e.g. HF_TOKEN"),
}
_LONGEST_LABEL = 48
_LONGEST_PART = 96


def pattern(kind: Kind) -> str:
    """The kind's regular expression, anchored: for a document of the API."""
    return f"^{GRAMMARS[kind].form}$"


def fits(kind: Kind, text: str) -> bool:
    """True when `text` is a name of this kind."""
    return re.fullmatch(GRAMMARS[kind].form, text) is not None


def check(kind: Kind, text: str, *, what: str = "", error: type[UsageError] = UsageError) -> str:
    """`text`, when it is a name of this kind; `what` is what it was written as, the kind when not said.

    Raises:
        UsageError: as `error`, with the nearest name in its hint where one is near.
    """
    if fits(kind, text):
        return text
    near = normalise(text) if GRAMMARS[kind] is _LABEL else ""
    rule = f"use {GRAMMARS[kind].rule}"
    raise error(f"{what or kind} {text!r} is not a name", f"`{near}` is one; {rule}" if near else rule)


def normalise(text: str) -> str:
    """The name of an endpoint, runtime or secret nearest to `text`; a valid one is itself, and empty when none is near.

    Projects, folders, recipes and models have names of wider grammars: `Llama-3` is deployed as `llama-3`.
    """
    dashed = re.sub(r"[^a-z0-9]+", lambda run: run[0] if set(run[0]) == {"-"} else "-", text.lower())
    return dashed.strip("-")[:_LONGEST_LABEL].rstrip("-")


def of_folder(folder: Path) -> str:
    """The name nearest to a folder's.

    Raises:
        UsageError: nothing of it can stand in a name.
    """
    if name := normalise(folder.resolve().name):
        return name
    raise UsageError(f"nothing of {str(folder)!r} can stand in a name", "add --name, e.g. --name my-app")


def model_of(recipe: str) -> str:
    """The model that a recipe of this name becomes when it says nothing else; each valid recipe's is valid."""
    one = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", recipe))
    return f"puna/{one[:_LONGEST_PART].rstrip('._-')}"

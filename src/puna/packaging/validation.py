"""The result of an app's dry run, or the reason of its failure in the user's own lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.config import schema
from puna.config.schema import Schema
from puna.errors import AppError
from puna.process.guard import tail

_PHASES = {
    "schema": "input_schema.py could not be read",
    "import": "app.py could not be imported",
    "initialize": "initialize failed",
    "infer": "infer failed on the example of input_schema.py",
    "output": "what infer returned cannot be sent",
    "bake": "its engine failed at a batch size or way of sampling that requests may use",
    "finalize": "finalize failed",
}
# The first pattern found in the error decides what to type next.
_HINTS = (
    (r"No module named ['\"]([\w.]+)['\"]", "add the package of `{0}` to python_packages in the runtime file"),
    (r"CUDA out of memory|No available memory for the cache|KV cache", "use a larger GPU, or a smaller max_model_len"),
    (
        r"(?i)offline mode|LocalEntryNotFound|couldn't connect to",
        "publish the model, or set HF_HUB_OFFLINE: '0' in env",
    ),
    (
        r"(?i)gated repo|401 Client Error",
        "puna secret set hub HF_TOKEN=...    # and name `hub` under `secrets:` in inferless.yaml",
    ),
    (
        r"No CUDA GPUs are available|Failed to infer device type",
        "this machine shows no GPU: puna init MODEL FOLDER --engine transformers",
    ),
    (
        r"chat_template is not set",
        "this is a base model: publish a fine-tuned one, or send plain text to the tokenizer",
    ),
    (r"hf_transfer.{0,40}(is not available|package)", "add hf-transfer to python_packages in the runtime file"),
    (
        r"did not end within",
        "the line is where it was last seen: what runs or waits for long at the top of app.py belongs in initialize or "
        "infer, and weights belong in a published model",
    ),
    (r"must return a dict", "end infer with a dictionary, e.g. `return {{'generated_text': text}}`"),
    (r"is empty list which", "let the example of input_schema.py lead to an output that is not empty"),
    (r"ended with exit code", "something called os._exit, or a library ended the process: its last lines are above"),
    (r"SIGSEGV|SIGBUS|SIGILL|SIGABRT", "a library crashed: are its version and the CPU or GPU it was built for right?"),
    (r"out of memory|MemoryError|SIGKILL", "use a machine with more memory, or load less: a smaller model or dtype"),
    (r"KeyError: ['\"](\w+)['\"]", "is `{0}` an input of input_schema.py?"),
)


@dataclass(frozen=True)
class Validation:
    """A dry run that went well."""

    schema: Schema
    outputs: tuple[Mapping[str, Any], ...]
    """`{"name", "datatype", "shape", "data"}` of each output."""
    seconds: Mapping[str, float]
    """Phase -> seconds."""
    schema_json: Mapping[str, Any]
    """The schema as the worker wrote it."""


def read(report: Path, log: Path) -> Validation:
    """Read the worker's report; `log` is what the app printed.

    Raises:
        AppError: the app failed, or its process was ended; with the line, a hint, and the traceback as detail.
    """
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise AppError(
            "the app's process ended before it could say anything", "read the log below", _tail(log)
        ) from None
    if found.get("unfinished"):
        raise AppError(
            f"the app's process ended during {found.get('phase')}: it was stopped, crashed or ran out of memory",
            _hint(_tail(log)) or "the last lines it printed are below; is there enough memory, and time?",
            _tail(log),
        )
    if not found.get("ok"):
        raise _failure(found, log)
    seconds = {name.removesuffix("_s"): float(value) for name, value in (found.get("timings") or {}).items()}
    described = found.get("schema") or {"inputs": []}
    return Validation(schema.from_json(described), tuple(found.get("outputs") or ()), seconds, described)


def _failure(found: Mapping[str, Any], log: Path) -> AppError:
    error = str(found.get("error") or "no reason was given")
    where = f" ({found['line']})" if found.get("line") else ""
    what = _PHASES.get(str(found.get("phase")), "the app failed")
    detail = str(found.get("traceback") or "") or _tail(log)
    return AppError(
        f"{what}: {error}{where}", _hint(error) or _hint(_tail(log)) or "correct the line, deploy again", detail
    )


def _hint(text: str) -> str:
    for pattern, hint in _HINTS:
        if found := re.search(pattern, text):
            return hint.format(*found.groups())
    return ""


def _tail(log: Path) -> str:
    return "\n".join(tail(str(log)))

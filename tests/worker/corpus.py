"""The apps in apps/: one text file each, in which `-- name --` begins a file of the app, or what is to be done with it.

The first line says what the app shows. `-- calls --` holds a call a line, `[stream] INPUTS -> REPLY`: inputs as
`inferless.call(data=...)` sends them, and the outputs as name -> [datatype, shape, data], the events of a stream, or a
status and the beginning of its error. `-- env --` is NAME=VALUE, `-- log --` what the log must hold.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "apps"
NAMES = sorted(path.stem for path in FOLDER.glob("*.app"))
SECTION = re.compile(r"^-- (\S+) --\n", re.MULTILINE)
OUR_OWN = ("calls", "env", "log")
DATATYPES = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}  # the client's, whatever the schema says


@dataclass(frozen=True)
class CorpusCall:
    """One request and what must come back."""

    streams: bool
    inputs: dict[str, Any]
    status: int
    expected: Any
    """Outputs by name, a list of events, or the beginning of the error."""

    def body(self) -> bytes:
        """The request's body."""
        if self.streams:
            return json.dumps({"parameters": self.inputs}).encode()
        return json.dumps({"inputs": [tensor(name, value) for name, value in self.inputs.items()]}).encode()


@dataclass(frozen=True)
class CorpusApp:
    """One app of the corpus."""

    name: str
    files: dict[str, str]
    calls: list[CorpusCall]
    env: dict[str, str]
    log: list[str]

    def write(self, folder: Path) -> Path:
        """The app's folder with its files."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder


def tensor(name: str, value: Any) -> dict[str, Any]:
    """A tensor as the platform's client makes it of a Python value."""
    shape, leaf = [], value
    while isinstance(leaf, list):
        shape.append(len(leaf))
        leaf = leaf[0]
    data = value if shape else [value]
    return {"name": name, "shape": shape or [1], "datatype": DATATYPES[type(leaf)], "data": data}


def read(name: str) -> CorpusApp:
    """The app of that name."""
    pieces = SECTION.split((FOLDER / f"{name}.app").read_text())
    parts = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    own = {key: parts.get(key, "").splitlines() for key in OUR_OWN}
    env = dict(line.split("=", 1) for line in own["env"])
    files = {key: text for key, text in parts.items() if key not in OUR_OWN}
    return CorpusApp(name, files, [_call(line) for line in own["calls"]], env, own["log"])


def _call(line: str) -> CorpusCall:
    asked, _, told = line.partition(" -> ")
    streams = asked.startswith("stream ")
    inputs = json.loads(asked.removeprefix("stream "))
    if found := re.match(r"(\d{3}) ", told):
        return CorpusCall(streams, inputs, int(found[1]), told[4:])
    return CorpusCall(streams, inputs, 200, json.loads(told))

"""The apps in apps/ (each keeps something of a request) and clean/ (none does), one text file each.

The first line says what the app keeps, or what it shows. `-- name --` begins a file of the app; input_schema.py is
SCHEMA where the app brings none, and streams for those in `streaming/`. The tutorial's app and those that `puna init`
writes are clean as well, and are taken from where they stand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import tutorial_files
from puna.packaging import template
from worker.hazards.copying_llama import MARKERS, NAMES

HERE = Path(__file__).parent
ENGINES = ("vllm", "transformers", "async", "streaming")
SECTION = re.compile(r"^-- (\S+) --\n", re.MULTILINE)
MARKER = re.compile(r"q\d+q")
TUTORIAL, INIT = "the tutorial's", "what puna init writes"
BORROWED = [("vllm", TUTORIAL), ("vllm", INIT), ("transformers", INIT)]
STYLES, LIMITS = ("plain", "loud", "quiet"), (3, 5, 8)
VARIANTS = len(STYLES)
SCHEMA = """\
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["tell q0q about llamas"]},
    "style": {"datatype": "STRING", "required": False, "shape": [1], "example": ["plain"]},
    "limit": {"datatype": "INT32", "required": False, "shape": [1], "example": [5]},
}
"""


@dataclass(frozen=True)
class Story:
    """One app and what is asked of it."""

    kind: str
    """`apps` or `clean`."""
    engine: str
    name: str

    @property
    def streams(self) -> bool:
        """It answers with events."""
        return self.engine == "streaming"

    def write(self, folder: Path) -> Path:
        """The app's folder with its files."""
        schema = SCHEMA + "IS_STREAMING_OUTPUT = True\n" * self.streams
        if self.name == TUTORIAL:
            files = {"app.py": tutorial_files.APP}
        elif self.name == INIT:
            template.init(folder, NAMES[0], name="init", engine=template.chosen(self.engine), force=True)
            # This Llama never ends a reply by itself.
            files = {"app.py": (folder / "app.py").read_text().replace("max_new_tokens=128", "max_new_tokens=4")}
        else:
            pieces = SECTION.split((HERE / self.kind / self.engine / f"{self.name}.app").read_text())
            files = dict(zip(pieces[1::2], pieces[2::2], strict=True))
        files = {"input_schema.py": schema, **files}
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    def __str__(self) -> str:
        return f"{self.engine}-{self.name}"


def stories(kind: str) -> list[Story]:
    """All of one kind, engine by engine."""
    found = [Story(kind, e, path.stem) for e in ENGINES for path in sorted((HERE / kind / e).glob("*.app"))]
    return found if kind == "apps" else [*found, *(Story(kind, *borrowed) for borrowed in BORROWED)]


def marker(number: int) -> str:
    """The words that only this call says, of those that run; the model knows so many and no more."""
    return f"q{number % MARKERS}q"


def inputs(number: int) -> dict[str, Any]:
    """What call `number` sends; the style and the limit are those of its variant."""
    variant = number % VARIANTS
    prompt = f"tell {marker(number)} about llamas and more things to know please"
    return {"prompt": prompt, "style": STYLES[variant], "limit": LIMITS[variant]}

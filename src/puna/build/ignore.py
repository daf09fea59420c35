"""Which files of a project folder stay behind: .punaignore and .gitignore, the part of their grammar people use."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ProjectError

ALWAYS = (
    ".git/",
    ".hg/",
    ".svn/",
    "__pycache__/",
    "*.pyc",
    ".venv/",
    "venv/",
    "node_modules/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".ipynb_checkpoints/",
    ".DS_Store",
    ".gitignore",
    ".punaignore",
)
FILES = (".gitignore", ".punaignore")
MAX_FILE_BYTES, MAX_RULES = 64 * 1024, 1000
"""Each rule is tried on each path, and whoever sent the project wrote them."""


@dataclass(frozen=True)
class Ignore:
    """Patterns in order; the last one that matches decides."""

    rules: tuple[tuple[tuple[re.Pattern[str] | None, ...], bool, bool], ...]
    """`(pattern of each part, None for any number of them; keep; only folders)`."""

    @classmethod
    def of(cls, folder: Path) -> Ignore:
        """The rules for `folder`: the fixed ones, then .gitignore, then .punaignore, which may take back with `!`.

        Raises:
            ProjectError: there are too many.
        """
        lines = list(ALWAYS)
        for name in FILES:
            if (folder / name).is_file():
                with (folder / name).open(encoding="utf-8", errors="replace") as file:
                    text = file.read(MAX_FILE_BYTES + 1)
                found = text.splitlines()
                if len(text) > MAX_FILE_BYTES or len(found) > MAX_RULES:
                    limits = f"at most {MAX_RULES} lines and {MAX_FILE_BYTES >> 10} KiB"
                    raise ProjectError(f"{name} is too long", limits)
                lines += found
        return cls.parse(lines)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Ignore:
        """Rules from pattern lines; comments and empty lines are skipped."""
        rules = []
        for line in lines:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            keep, line = line.startswith("!"), line.removeprefix("!")
            rules.append((_parts(line.rstrip("/")), keep, line.endswith("/")))
        return cls(tuple(rules))

    def covers(self, path: str, is_folder: bool) -> bool:
        """Whether `path`, relative with `/`, stays behind."""
        ignored, parts = False, path.split("/")
        for pattern, keep, only_folders in self.rules:
            if (is_folder or not only_folders) and _fits(pattern, parts):
                ignored = not keep
        return ignored


def _parts(pattern: str) -> tuple[re.Pattern[str] | None, ...]:
    # A pattern with a slash inside is anchored at the root, one without matches at any depth.
    parts = pattern.removeprefix("/").split("/") if "/" in pattern else ["**", pattern]
    # fnmatch's translation tries no star twice, whatever the pattern; one regex for the whole path would.
    return tuple(None if part == "**" else re.compile(fnmatch.translate(part.replace("[", "[[]"))) for part in parts)


def _fits(pattern: Sequence[re.Pattern[str] | None], parts: Sequence[str]) -> bool:
    """Whether all of `parts` fit: for each part of the pattern, the counts of `parts` that may lie behind it."""
    behind = {0}
    for part in pattern:
        if part is None:
            behind = set(range(min(behind), len(parts) + 1)) if behind else behind
        else:
            behind = {count + 1 for count in behind if count < len(parts) and part.match(parts[count])}
    return len(parts) in behind and (pattern[-1] is not None or len(parts) - 1 in behind)

"""Which files of a project folder stay behind: .punaignore and .gitignore, the part of their grammar people use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Ignore:
    """Patterns in order; the last one that matches decides."""

    rules: tuple[tuple[re.Pattern[str], bool, bool], ...]
    """`(pattern, keep, only folders)`."""

    @classmethod
    def of(cls, folder: Path) -> Ignore:
        """The rules for `folder`: the fixed ones, then .gitignore, then .punaignore, which may take back with `!`."""
        lines = list(ALWAYS)
        for name in FILES:
            if (folder / name).is_file():
                lines += (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
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
            rules.append((re.compile(_regex(line.rstrip("/"))), keep, line.endswith("/")))
        return cls(tuple(rules))

    def covers(self, path: str, is_folder: bool) -> bool:
        """Whether `path`, relative with `/`, stays behind."""
        ignored = False
        for pattern, keep, only_folders in self.rules:
            if pattern.fullmatch(path) and (is_folder or not only_folders):
                ignored = not keep
        return ignored


def _regex(pattern: str) -> str:
    # A pattern with a slash inside is anchored at the root, one without matches at any depth.
    out = "" if "/" in pattern else "(?:.*/)?"
    pattern = pattern.removeprefix("/")
    i = 0
    while i < len(pattern):
        for text, regex in (("**/", "(?:.*/)?"), ("**", ".*"), ("*", "[^/]*"), ("?", "[^/]")):
            if pattern.startswith(text, i):
                out, i = out + regex, i + len(text)
                break
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return out

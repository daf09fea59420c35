"""Which files of a project folder stay behind: .punaignore and .gitignore, read as git reads them.

pathspec knows git's grammar; RE2 tries the patterns in time linear in the path, since strangers write them.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import re2
from pathspec import PathSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

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
MAX_FILE_BYTES, MAX_RULES, MAX_RULE_CHARACTERS = 64 * 1024, 1000, 255
MAX_MATCHING_S = 20.0
"""All rules are tried on each path of a project; hostile ones are linear too, and still slow together."""

PROBE = "puna\x01probe"
"""The last rule, and no file's name: RE2 says "no match" of rules that exceed its memory."""


class Ignore:
    """Patterns in order; the last one that matches decides."""

    def __init__(self, spec: PathSpec[GitIgnoreSpecPattern]) -> None:
        self._spec = spec
        self._spent_s = 0.0

    @classmethod
    def of(cls, folder: Path) -> Ignore:
        """The rules for `folder`: the fixed ones, then .gitignore, then .punaignore, which may take back with `!`.

        Raises:
            ProjectError: there are too many, or one is too long.
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
                for number, line in enumerate(found, 1):
                    if len(line) > MAX_RULE_CHARACTERS and not line.startswith("#"):
                        raise ProjectError(
                            f"{name}: line {number} has {len(line)} characters", f"at most {MAX_RULE_CHARACTERS}"
                        )
                lines += found
        return cls.parse(lines)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Ignore:
        """Rules from pattern lines; comments, empty lines and what git takes for no pattern are skipped.

        Raises:
            ProjectError: RE2 cannot hold them.
        """
        # `data/**` is what lies in data, not data itself: pathspec would leave the folder with what `!` keeps in it.
        rules = [line + "/*" if line.endswith("/**") else line for line in lines]
        try:
            spec = PathSpec.from_lines(_pattern, [*rules, PROBE], backend="re2")
        except re2.error:
            spec = None
        if spec is None or not spec.match_file(PROBE):
            raise ProjectError("the ignore lists are too complicated", "use fewer and simpler patterns") from None
        return cls(spec)

    def covers(self, path: str, is_folder: bool) -> bool:
        """Whether `path`, relative with `/`, stays behind.

        Raises:
            ProjectError: all paths together have taken too long.
        """
        began = time.monotonic()
        text = path.encode(errors="replace").decode()  # a name that is no UTF-8 has surrogates
        ignored = bool(self._spec.match_file(text + "/" if is_folder else text))
        self._spent_s += time.monotonic() - began
        if self._spent_s > MAX_MATCHING_S:
            raise ProjectError("the ignore lists take too long to try", "use fewer and simpler patterns")
        return ignored


def _pattern(line: str) -> GitIgnoreSpecPattern:
    """A rule that speaks of what it names alone: nobody asks for what lies below a folder that stays behind."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `[[]`: Python may read it otherwise one day; RE2 does not
            found = GitIgnoreSpecPattern(line)
            if found.regex is None:
                return found
            text = found.regex.pattern.replace("(?:(?P<ps_d>/)|$)", "/?$").replace("(?P<ps_d>/)", "/$")
            # `v[!0-9]` is no folder `v/`: in git a class takes no slash, in pathspec it does.
            return GitIgnoreSpecPattern(re.compile(text.replace("[^", "[^/")), found.include)
    except (ValueError, re.error):
        return GitIgnoreSpecPattern("")  # git: an invalid pattern never matches

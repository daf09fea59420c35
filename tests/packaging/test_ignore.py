"""Which files stay behind."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from puna.errors import ProjectError
from puna.packaging import ignore, source
from puna.packaging.ignore import ALWAYS, Ignore


@pytest.mark.parametrize(
    ("line", "path", "is_folder", "covered"),
    [
        ("*.log", "a.log", False, True),
        ("*.log", "deep/down/a.log", False, True),
        ("*.log", "a.log.py", False, False),
        ("/build", "build", True, True),
        ("/build", "src/build", True, False),
        ("data/", "data", True, True),
        ("data/", "data", False, False),
        ("data/*.bin", "data/a.bin", False, True),
        ("data/*.bin", "data/deep/a.bin", False, False),
        ("data/**/*.bin", "data/deep/er/a.bin", False, True),
        ("data/**/*.bin", "data/a.bin", False, True),
        ("a?c", "abc", False, True),
        ("a?c", "a/c", False, False),
        ("# comment", "# comment", False, False),
        ("", "x", False, False),
        ("a+b.txt", "a+b.txt", False, True),
    ],
)
def test_patterns_mean_what_they_mean_to_git(line: str, path: str, is_folder: bool, covered: bool) -> None:
    assert Ignore.parse([line]).covers(path, is_folder) is covered


def test_the_last_matching_pattern_decides() -> None:
    rules = Ignore.parse(["*.bin", "!keep.bin"])
    assert rules.covers("a.bin", False) and not rules.covers("keep.bin", False)


def test_repositories_environments_and_caches_always_stay_behind() -> None:
    rules = Ignore.parse(ALWAYS)
    for name in (".git", "sub/__pycache__", ".venv", "web/node_modules"):
        assert rules.covers(name, True)
    assert not rules.covers("app.py", False) and not rules.covers(".env", False)


@pytest.mark.parametrize(
    ("lines", "path", "is_folder", "covered"),
    [
        (["v[0-9]"], "v1", False, True),
        (["v[!0-9]"], "v1", False, False),
        (["v[!0-9]"], "v", True, False),
        (["v[!0-9]"], "va", True, True),
        (["[[]x"], "[x", False, True),
        (["\\!x"], "!x", False, True),
        (["\\#x"], "#x", False, True),
        (["data/**"], "data", True, False),
        (["data/**"], "data/a/b", False, True),
        (["data/**", "!data/keep"], "data/keep", False, False),
        (["*", "!keep"], "keep", False, False),
        (["x  "], "x", False, True),
        (["x\\ "], "x ", False, True),
        (["[z-a]", "[a", "a\\", "/", "!"], "a", False, False),
        (["caf?"], "caf\udce9", False, True),
    ],
)
def test_classes_escapes_and_whole_folders_mean_what_they_mean_to_git(
    lines: list[str], path: str, is_folder: bool, covered: bool
) -> None:
    assert Ignore.parse(lines).covers(path, is_folder) is covered


def test_git_and_puna_leave_the_same_files_behind(tmp_path: Path) -> None:
    drawn = random.Random(3)
    _fill(tmp_path, drawn, 0)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    pieces = ["a", "b", "*", "**", "/", "?", "[ab]", "[!a]", "[!b-z]", "!", "\\a", " ", "."]
    for _ in range(60):
        lines = ["".join(drawn.choices(pieces, k=drawn.randint(1, 6))) for _ in range(drawn.randint(1, 4))]
        (tmp_path / ".gitignore").write_text("\n".join(lines))
        command = ["git", "ls-files", "--others", "--exclude-standard", "-z"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        kept = {name for name, _ in source.listing(tmp_path)}
        assert kept == {name for name in said.split("\0") if name} - {".gitignore"}, lines


def _fill(folder: Path, drawn: random.Random, depth: int) -> None:
    for name in drawn.sample(["a", "b", "ab", "a.b", "a b", "ba", "aab", "b."], 4):
        if depth < 3 and drawn.random() < 0.5:
            (folder / name).mkdir()
            _fill(folder / name, drawn, depth + 1)
        else:
            (folder / name).write_text("")


@pytest.mark.parametrize("rule", ["*a" * 120 + "b", "**/" * 40 + "*a*a*a*a*ab", "?" * 200 + "*" * 50 + "b"])
def test_a_pattern_that_could_be_tried_in_every_way_is_tried_in_one(rule: str) -> None:
    rules, began = Ignore.parse([*ALWAYS, *[rule] * 20]), time.process_time()
    for path in ("a" * 250, "a/" * 120 + "a"):
        assert not rules.covers(path, False)
    assert rules.covers("__pycache__", True)
    assert time.process_time() - began < 5.0


def test_too_many_too_long_and_too_slow_rules_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, said in [
        ("*a*\n" * 1001, "too long"),
        ("a" * (64 * 1024 + 1), "too long"),
        ("fine\n" + "a" * 256, "line 2 has 256 characters"),
        ("\n".join(f"*{'*'.join('abc' * 40)}{number}" for number in range(250)), "too complicated"),
    ]:
        (tmp_path / ".punaignore").write_text(text)
        with pytest.raises(ProjectError, match=said):
            Ignore.of(tmp_path)
    (tmp_path / ".punaignore").write_text("a" * 255 + "\n#" + "a" * 300)
    rules = Ignore.of(tmp_path)
    assert rules.covers("a" * 255, False)
    monkeypatch.setattr(ignore, "MAX_MATCHING_S", 0.0)
    with pytest.raises(ProjectError, match="too long to try"):
        rules.covers("app.py", False)

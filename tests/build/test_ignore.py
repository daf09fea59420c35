"""Which files stay behind."""

import pytest

from puna.build.ignore import ALWAYS, Ignore


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

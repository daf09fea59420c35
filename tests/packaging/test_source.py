"""Project folders: what is checked, what is kept, what is refused."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from config.tutorial_files import FILES
from puna.errors import ProjectError, RuntimeSpecError, SchemaError
from puna.home import Home
from puna.packaging import source
from puna.packaging import source as ignore
from puna.packaging.source import ALWAYS, Ignore


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


def test_a_good_project_passes_and_is_not_run(folder: Path) -> None:
    witness = folder / "ran"
    (folder / "app.py").write_text(f"open({str(witness)!r}, 'w')\n" + (folder / "app.py").read_text())
    source.check(folder)
    assert not witness.exists()


def test_the_tutorials_four_files_pass(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    source.check(tmp_path)


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (None, "no app.py"),
        ("class InferlessPythonModel:\n    def infer(self, inputs:\n        pass\n", "app.py line 2"),
        ("x = 1\n", "no class InferlessPythonModel"),
        ("\nclass InferlessPythonmodel:\n    def infer(self, i): ...\n", "line 2 has class InferlessPythonmodel"),
        ("\n\nclass InferlessPythonModel:\n    def predict(self, i): ...\n", "line 3: class .* has no method infer"),
        ("class InferlessPythonModel:\n    def infer(self): ...\n", "line 2: infer takes no inputs"),
        ("x = '\0'\n", "app.py"),
    ],
)
def test_a_wrong_app_is_told_the_line(folder: Path, app: str | None, message: str) -> None:
    (folder / "app.py").unlink()
    if app is not None:
        (folder / "app.py").write_text(app)
    with pytest.raises(ProjectError, match=message) as caught:
        source.check(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    "app",
    [
        "class InferlessPythonModel:\n    async def infer(self, inputs, stream_output_handler): ...\n",
        "from lib.base import Base\nclass InferlessPythonModel(Base):\n    pass\n",
        "from lib.base import Model as InferlessPythonModel\n",
        "try:\n    import x\nexcept ImportError:\n    x = None\nelse:\n    y = 1\nclass Other: ...\n"
        "class InferlessPythonModel:\n    def infer(self, *args): ...\n",
        "import inferless\napp = inferless.Cls(gpu='T4')\nclass InferlessPythonModel:\n    @app.infer\n"
        "    def infer(self, inputs): ...\n",
        "PATTERN = '\\d'\nclass InferlessPythonModel:\n    def infer(self, prompt): ...\n",
    ],
)
def test_the_forms_that_published_apps_take_pass(folder: Path, app: str) -> None:
    (folder / "app.py").write_text(app)
    source.check(folder)


def test_model_py_beside_app_py_is_refused_but_not_below_it(folder: Path) -> None:
    (folder / "lib" / "model.py").write_text("")
    source.check(folder)
    (folder / "model.py").write_text("")
    with pytest.raises(ProjectError, match="model.py"):
        source.check(folder)


def test_schema_and_runtime_are_checked_too(folder: Path) -> None:
    (folder / "input_schema.py").write_text("INPUT_SCHEMA = {'x': {'datatype': 'INT'}}\n")
    with pytest.raises(SchemaError, match="x"):
        source.check(folder)
    (folder / "input_schema.py").unlink()
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: [-r /etc/passwd]\n")
    with pytest.raises(RuntimeSpecError):
        source.check(folder)


def test_equal_folders_make_one_snapshot(folder: Path, home: Home) -> None:
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    for junk in (".git/config", "__pycache__/a.pyc", ".venv/bin/python", "node_modules/x.js", "big.bin"):
        (folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (folder / junk).write_text("junk")
    (folder / ".punaignore").write_text("*.bin\n")
    first, second = source.snapshot(folder, home), source.snapshot(folder, home)
    assert first.digest == second.digest and first.path == second.path
    assert sorted(first.manifest.files) == [
        "files/app.py", "files/inferless-runtime-config.yaml", "files/input_schema.py", "files/lib/words.py",
        "files/run.sh",
    ]  # fmt: skip
    assert os.access(first.path / "files" / "run.sh", os.X_OK)
    assert not first.damage()
    assert [p.name for p in home.sources.iterdir() if p.name != source.LOCK] == [first.path.name]


def test_what_is_packed_unpacks_to_the_same_snapshot(folder: Path, home: Home, tmp_path: Path) -> None:
    data = source.pack(folder)
    os.utime(folder / "app.py", (1, 1))
    assert source.pack(folder) == data
    there = source.unpack(data, Home(tmp_path / "other"))
    assert there.digest == source.snapshot(folder, home).digest
    assert (there.path / "files" / "lib" / "words.py").read_text() == "WORDS = ['深']\n"


def test_links_inside_are_followed_and_links_out_are_refused(folder: Path, home: Home) -> None:
    (folder / "again.py").symlink_to("app.py")
    (folder / "lib2").symlink_to("lib")
    found = source.snapshot(folder, home)
    assert (found.path / "files" / "again.py").read_text() == (folder / "app.py").read_text()
    assert not (found.path / "files" / "again.py").is_symlink()
    assert "files/lib2/words.py" in found.manifest.files
    (folder / "secrets").symlink_to("/etc/passwd")
    with pytest.raises(ProjectError, match="secrets is a link to /etc/passwd"):
        source.snapshot(folder, home)
    (folder / "secrets").unlink()
    (folder / "gone").symlink_to("nothing-there")
    with pytest.raises(ProjectError, match="gone"):
        source.snapshot(folder, home)


def test_links_in_a_circle_are_refused(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    (folder / "one" / "two").symlink_to("../two")
    (folder / "two" / "one").symlink_to("../one")
    with pytest.raises(ProjectError, match="folder around it"):
        source.listing(folder)


def test_a_project_over_the_limits_is_told_what_to_do(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"\0" * 5000)
    with pytest.raises(ProjectError, match="MiB") as caught:
        source.listing(folder, limit_bytes=4000)
    assert ".punaignore" in caught.value.hint
    with pytest.raises(ProjectError, match="over 3 files"):
        source.listing(folder, limit_files=3)


def test_an_empty_folder_is_no_project(tmp_path: Path, home: Home) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProjectError, match="no files"):
        source.snapshot(tmp_path / "empty", home)
    with pytest.raises(ProjectError, match="no folder"):
        source.snapshot(tmp_path / "nowhere", home)

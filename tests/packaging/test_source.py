"""Project folders: what is checked, what is kept, what is refused."""

import os
from pathlib import Path

import pytest

from config.tutorial_files import FILES
from puna.errors import ProjectError, RuntimeSpecError, SchemaError
from puna.home import Home
from puna.packaging import source


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
    first.check()
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

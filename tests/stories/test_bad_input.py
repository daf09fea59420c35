"""What a person gets wrong: one clear sentence, a hint, a non-zero exit, and nothing half-made on disk."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.cli.main import run
from stories.conftest import Up, write_app

pytestmark = pytest.mark.process

RECIPE = (
    "name: bad\nbase: {base}\ndata:\n  dataset: {data}\n  take: null\n  test_fraction: 0.1\ntraining:\n  max_steps: 2\n"
)
GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'


class Told:
    """A command's exit code and what it said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.text = code, out + err
        assert "/src/puna/" not in err, f"a traceback of ours:\n{err}"
        assert code != 0
        *_, error, hint = err.strip().splitlines()
        assert error.startswith("error: ") and hint.startswith("hint:  ") and len(hint) > 10, err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "home"
    monkeypatch.setenv("PUNA_HOME", str(root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return root


def puna(capsys: pytest.CaptureFixture[str], *words: str) -> Told:
    code = run(list(words))
    said = capsys.readouterr()
    return Told(code, said.out, said.err)


def recipe(folder: Path, data: str = GOOD * 20, base: str = "demo") -> str:
    (folder / "rows.jsonl").write_text(data)
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base, data="rows.jsonl"))
    return str(folder / "recipe.yaml")


def made(home: Path) -> list[str]:
    """Artifacts and what could be half of one."""
    rooms = ("datasets", "runs", "models", "bundles", "sources", "environments", "registry")
    return [str(path) for room in rooms for path in (home / room).glob("*") if path.suffix != ".lock"]


# ------------------------------------------------------------------ training


def test_an_unknown_recipe_key(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: a\nbase: demo\ntraining:\n  learning_rte: 1\n")
    told = puna(capsys, "train", str(file))
    assert "training.learning_rte" in told.text and "learning_rate" in told.text and made(home) == []


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"messages": [{"role": "user"}]}', "content"),
        ('{"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}', "robot"),
        ('{"messages": "hi"}', "list"),
        ('{"messages": [', "JSON"),
    ],
)
def test_a_broken_row_names_file_and_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, what: str
) -> None:
    told = puna(capsys, "train", recipe(tmp_path, GOOD * 6 + row + "\n" + GOOD * 6))
    assert "rows.jsonl" in told.text and "7" in told.text and what.lower() in told.text.lower() and made(home) == []


@pytest.mark.parametrize("base", ["./no-such-folder", "acme/no-such-model"])
def test_a_missing_base(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str) -> None:
    told = puna(capsys, "train", recipe(tmp_path, base=base))
    assert base.removeprefix("./") in told.text and made(home) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A real file system of one megabyte: the dataset does not fit."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        monkeypatch.setenv("PUNA_HOME", str(small / "home"))
        row = GOOD.replace("hello", "hello " * 40)
        told = puna(capsys, "train", recipe(tmp_path, row * 4000))
        assert told.code == 6 and "no space left" in told.text.lower() and made(small / "home") == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# ------------------------------------------------------------------ serving


@pytest.fixture
def here(shared_up: Up, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    monkeypatch.setenv("PUNA_HOME", str(shared_up.home.root))
    before = set(made(shared_up.home.root))
    yield shared_up
    # A half environment's files, out of the way at once, go meanwhile.
    shared_up.until(lambda: not list(shared_up.home.environments.glob(".gone-*")), 30, "the end of half environments")
    # Sources, bundles and environments are whole when they are there; nothing else of a failed deploy may stay.
    for path in set(made(shared_up.home.root)) - before:
        whole = Path(path) / ("environment.json" if "/environments/" in path else "manifest.json")
        assert whole.exists(), path


BROKEN_APPS = {
    "syntax": ("class InferlessPythonModel:\n    def infer(self, inputs)\n        return {}\n", "app.py", "2"),
    "no_class": ("class Model:\n    pass\n", "InferlessPythonModel", "app.py"),
    "name_error": (
        "import os\nos.nope()\nclass InferlessPythonModel:\n    def infer(self, i):\n        return {}\n",
        "nope",
        "2",
    ),
    "not_a_dict": ("class InferlessPythonModel:\n    def infer(self, i):\n        return 'text'\n", "dict", "str"),
}


@pytest.mark.parametrize("kind", BROKEN_APPS)
def test_a_broken_app_is_refused_with_its_line(
    here: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = write_app(tmp_path / f"broken-{kind.replace('_', '-')}")
    text, *expected = BROKEN_APPS[kind]
    (folder / "app.py").write_text(text)
    told = puna(capsys, "deploy", str(folder), "--gpu", "cpu")
    assert all(word in told.text for word in expected), told.text


def test_a_wrong_schema_names_the_input(here: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_app(tmp_path / "wrong-schema")
    (folder / "input_schema.py").write_text(
        'INPUT_SCHEMA = {"prompt": {"datatype": "FLOAT", "shape": [1], "example": [1]}}'
    )
    told = puna(capsys, "deploy", str(folder), "--gpu", "cpu")
    assert "prompt" in told.text and "FLOAT" in told.text


def test_an_unknown_package_shows_the_resolvers_sentence(
    here: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_app(tmp_path / "unknown-package")
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: [six==99.0]\n")
    told = puna(capsys, "runtime", "upload", str(folder / "inferless-runtime-config.yaml"))
    assert "six==99.0" in told.text


def test_a_failed_deploy_leaves_the_old_revision_serving(
    here: Up, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_app(tmp_path / "careful")
    here.deploy(folder, "careful")
    (folder / "app.py").write_text(BROKEN_APPS["name_error"][0])
    puna(capsys, "deploy", str(folder), "--gpu", "cpu")
    reply = here.call("still", name="careful")
    assert reply.status_code == 200 and "v1:still" in reply.text


def test_calling_what_is_not_there(here: Up, capsys: pytest.CaptureFixture[str]) -> None:
    assert puna(capsys, "call", "no-such-endpoint", "prompt=hi").code == 3


def test_a_port_in_use(
    here: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "other"))
    port = here.url.rsplit(":", 1)[1]
    told = puna(capsys, "up", "--port", port)
    assert told.code == 6 and port in told.text and "--port" in told.text


def test_a_second_up_in_one_home(here: Up, capsys: pytest.CaptureFixture[str]) -> None:
    told = puna(capsys, "up", "--port", "0")
    assert told.code == 4 and str(json.loads(here.home.state.read_text())["pid"]) in told.text


def test_nothing_is_up(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "puna up" in puna(capsys, "ps").text
    assert not os.path.exists(home / "up.json")

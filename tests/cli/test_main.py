"""The command table, exit codes, and errors as a person and as a program see them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from puna.cli.main import COMMANDS, run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_in_the_table_exists_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(COMMANDS[name].load())
    assert run([name, "--help"]) == 0
    assert f"puna {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["trian"], 2, "no command `trian`", "did you mean `train`?"),
        (["train"], 2, "Missing argument", "puna train --help"),
        (["train", "--dryrun", "x"], 2, "No such option", "puna train --help"),
        (["train", "no-such-recipe.yaml"], 2, "does not exist", "check the path"),
        (["run", "show", "nothing"], 3, "nothing", "puna runs"),
        (["model", "show", "a/b"], 3, "a/b", "puna"),
        (["completion", "tcsh"], 2, "tcsh", "bash|zsh|fish"),
    ],
)
def test_a_mistake_gets_one_sentence_a_hint_and_an_exit_code(
    words: list[str],
    code: int,
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path))
    assert run(words) == code
    err = capsys.readouterr().err
    assert message in err and hint in err and "Traceback" not in err


def test_an_unknown_recipe_key_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: a\nbase: demo\nlora:\n  lora_rank: 8\n")
    assert run(["train", str(recipe), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "lora.lora_rank" in error["message"] and "lora_r" in error["hint"]
    assert not (tmp_path / "home" / "runs").exists()


def test_completion_scripts_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert run(["completion", shell]) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["version"]])
def test_a_reader_that_has_gone_is_no_error(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-m", "puna", *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")

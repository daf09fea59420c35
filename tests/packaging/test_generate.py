"""Runtime files made of environments: what was asked for, what is pinned, what only this machine has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from puna.config import runtime
from puna.errors import BuildError, NotFoundError
from puna.packaging import generate
from puna.packaging.environment import find_uv
from puna.packaging.generate import Place


def install(
    site: Path, name: str, version: str = "1.0", requires: tuple[str, ...] = (), asked: bool = False, **origin: object
) -> None:
    """What pip leaves of a package."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "INSTALLER").write_text("pip\n")
    if asked:
        (folder / "REQUESTED").write_text("")
    if origin:
        (folder / "direct_url.json").write_text(json.dumps(origin))


def made(site: Path, **options: bool) -> tuple[runtime.RuntimeSpec, str]:
    text = generate.text(Place("3.11", [str(site)]), **options)
    return runtime.parse_text(text), text


def test_what_was_named_is_asked_for_and_what_it_brought_along_is_not(tmp_path: Path) -> None:
    install(tmp_path, "Flask", "3.0", ("Werkzeug>=3", "importlib-metadata; python_version < '3.10'"), asked=True)
    install(tmp_path, "Werkzeug", "3.1", ("MarkupSafe",))
    install(tmp_path, "MarkupSafe", "2.0")
    install(tmp_path, "httptools", "0.6")  # nobody named it and nothing needs it: an extra of something
    for own in ("pip", "setuptools", "wheel", "puna"):
        install(tmp_path, own, asked=True)
    spec, _ = made(tmp_path)
    assert spec.python_packages == ("Flask==3.0", "httptools==0.6") and spec.python_version == "3.11"
    everything, _ = made(tmp_path, everything=True)
    assert everything.python_packages == ("Flask==3.0", "httptools==0.6", "MarkupSafe==2.0", "Werkzeug==3.1")


def test_a_dependency_that_was_named_too_keeps_its_pin(tmp_path: Path) -> None:
    install(tmp_path, "app", requires=("numpy",), asked=True)
    install(tmp_path, "numpy", "2.1", asked=True)
    assert made(tmp_path)[0].python_packages == ("app==1.0", "numpy==2.1")


def test_where_nobody_wrote_down_what_was_named_it_is_what_nothing_needs(tmp_path: Path) -> None:
    install(tmp_path, "a", requires=("b", 'c; extra == "more"'))
    install(tmp_path, "b", requires=("a-cycle",))
    install(tmp_path, "c")
    install(tmp_path, "one", requires=("two",))
    install(tmp_path, "two", requires=("one",))
    install(tmp_path, "a-cycle")
    assert made(tmp_path)[0].python_packages == ("a==1.0", "c==1.0", "one==1.0")


def test_suffixes_of_builds_become_a_cuda_version_and_notes(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.13.0+cu126", asked=True)
    install(tmp_path, "speech", requires=("torchaudio",), asked=True)
    install(tmp_path, "torchaudio", "2.13.0+cpu")  # not named, and yet no index's choice
    install(tmp_path, "mine", "1.0+patched.1", asked=True)
    spec, text = made(tmp_path)
    assert spec.python_packages == ("mine==1.0", "speech==1.0", "torch==2.13.0", "torchaudio==2.13.0")
    assert spec.cuda_version == "12.6" and "# torch is 2.13.0+cu126 here: built for CUDA 12.6" in text
    assert "# mine is 1.0+patched.1 here, which no index may have" in text


def test_what_came_from_elsewhere_is_asked_for_there_and_what_only_this_machine_has_is_a_note(tmp_path: Path) -> None:
    git = {"vcs": "git", "commit_id": "c" * 40}
    install(tmp_path, "web", asked=True, url="https://host.example/web.git", vcs_info=git, subdirectory="py")
    install(tmp_path, "keyed", asked=True, url="https://me:tok3n@host.example/k.git", vcs_info=git)
    install(tmp_path, "wheel-of-web", asked=True, url="https://host.example/w-1.0-py3-none-any.whl", archive_info={})
    install(tmp_path, "editable", asked=True, url="file:///home/me/src", dir_info={"editable": True})
    install(tmp_path, "svn", asked=True, url="https://host.example/x", vcs_info={"vcs": "svn", "commit_id": "7"})
    spec, text = made(tmp_path)
    assert spec.python_packages == (
        f"keyed @ git+https://host.example/k.git@{'c' * 40}",
        f"web @ git+https://host.example/web.git@{'c' * 40}#subdirectory=py",
        "wheel-of-web @ https://host.example/w-1.0-py3-none-any.whl",
    )
    assert "tok3n" not in text and "# keyed was fetched with credentials" in text
    assert "# editable 1.0 is installed from file:///home/me/src, which only this machine has" in text
    assert "# svn 1.0 is installed from" in text


def test_an_empty_environment_makes_an_empty_file(tmp_path: Path) -> None:
    spec, _ = made(tmp_path)
    assert spec.python_packages == () and spec.python_version == "3.11"


def test_what_is_no_environment_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is no environment"):
        generate.place(tmp_path)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(BuildError, match="does not say what it has"):
        generate.place(program)


@pytest.mark.process
def test_of_a_real_environment_and_the_file_builds_it_again(tmp_path: Path) -> None:
    venv, uv = tmp_path / "venv", find_uv()
    python = str(venv / "bin" / "python")
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(venv)], check=True)
    subprocess.run([*uv, "pip", "install", "-q", "--python", python, "python-dateutil==2.9.0.post0"], check=True)
    file = tmp_path / "runtime.yaml"
    command = [sys.executable, "-m", "puna", "runtime", "generate", "--python", str(venv), "--output", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    assert runtime.load(file).python_packages == ("python-dateutil==2.9.0.post0",)
    assert "six" in generate.text(generate.place(venv), everything=True)
    file.write_text("mine\n")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 4 and "--force" in refused.stderr and file.read_text() == "mine\n"

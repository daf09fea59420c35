"""A finished environment that was damaged is noticed, and built again as it was; real ones, of tiny packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from environments import leftovers
from puna.config.runtime import RuntimeSpec
from puna.errors import BuildError
from puna.home import Home
from puna.packaging import inventory
from puna.packaging.environment import Environment, build

pytestmark = pytest.mark.process

SPEC = RuntimeSpec(python_packages=("six==1.17.0", "tabulate==0.10.0"))


def test_damage_names_its_first_file_and_counts_the_others() -> None:
    assert str(inventory.Damage(missing=("a.py",))) == "a.py is missing"
    assert str(inventory.Damage(changed=("b.py",))) == "b.py is not as it was built"
    damage = inventory.Damage(("a.py", "c.py"), ("b.py",))
    assert str(damage) == "a.py is missing, and 2 other files are damaged" and damage and not inventory.Damage()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package cache that has what SPEC needs: it comes over the network once."""
    folder = tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_CACHE_DIR", str(folder / "cache"))
        build(SPEC, Home(folder / "home"), lambda line: None)
    return folder / "cache"


@pytest.fixture
def built(home: Home, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """With a package cache of its own on the same disk, so that its files are links into that."""
    shutil.copytree(packages, tmp_path / "cache", symlinks=True)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_LINK_MODE", "hardlink")
    return build(SPEC, home, lambda line: None)


def six(built: Environment) -> Path:
    (path,) = built.path.glob("venv/lib/python*/site-packages/six.py")
    return path


def works(built: Environment) -> bool:
    code = "import six, tabulate; print(six.__version__)"
    told = subprocess.run([built.python, "-I", "-c", code], capture_output=True, text=True, check=False)
    return told.stdout == "1.17.0\n"


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"raise SystemExit('other words')  #")


def replace(path: Path) -> None:
    path.unlink()
    path.write_text("__version__ = 'another'\n")


@pytest.mark.parametrize("harm", [delete, empty, cut, flip, replace])
def test_a_damaged_file_is_named_and_the_environment_is_whole_again(
    built: Environment, home: Home, harm: object
) -> None:
    assert works(built) and not inventory.damage(built.path)
    harm(six(built))  # type: ignore[operator]
    found = inventory.damage(built.path)
    assert "six.py" in str(found) and len(found.missing) + len(found.changed) == 1
    lines: list[str] = []
    again = build(SPEC, home, lines.append)
    assert again == built and works(again) and not inventory.damage(again.path)
    assert any("is damaged" in line and "six.py" in line for line in lines) and any("whole again" in x for x in lines)
    other = build(RuntimeSpec(python_packages=("six==1.17.0",)), home, lines.append)
    told = subprocess.run([other.python, "-I", "-c", "import six; six.PY3"], capture_output=True, check=False)
    assert told.returncode == 0, "what was changed in place is not taken from the cache for others either"
    leftovers(home)
    assert not [*home.environments.glob(".damaged-*")]


@pytest.mark.parametrize("name", ["bin/python", "lib", "pyvenv.cfg", "."])
def test_other_parts_of_it_too(built: Environment, home: Home, name: str) -> None:
    path = built.path / "venv" / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert inventory.damage(built.path)
    assert works(build(SPEC, home, lambda line: None))


def test_what_an_app_adds_and_a_home_that_was_copied_are_no_damage(built: Environment) -> None:
    (six(built).parent / "added.py").write_text("")
    (six(built).parent / "__pycache__").mkdir(exist_ok=True)
    (six(built).parent / "__pycache__" / "six.pyc").write_bytes(b"")
    os.utime(six(built))
    assert not inventory.damage(built.path)


def test_an_environment_of_an_older_puna_is_looked_at_by_its_packages_own_lists(built: Environment, home: Home) -> None:
    (built.path / inventory.FILES).unlink()
    six(built).unlink()
    assert "six.py is missing" in str(inventory.damage(built.path))
    build(SPEC, home, lambda line: None)
    (built.path / inventory.FILES).unlink()
    assert not inventory.damage(built.path) and (built.path / inventory.FILES).is_file()
    empty(six(built))
    assert inventory.damage(built.path).changed


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_list_is_made_again(built: Environment, text: str) -> None:
    (built.path / inventory.FILES).write_text(text)
    assert not inventory.damage(built.path)
    assert len(json.loads((built.path / inventory.FILES).read_text())) > 10


def test_what_cannot_be_built_again_stays_as_it_was(
    built: Environment, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    six(built).unlink()
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(BuildError):
        build(SPEC, home, lambda line: None)
    code = subprocess.run([built.python, "-I", "-c", "import tabulate"], capture_output=True, check=False).returncode
    assert code == 0 and (built.path / "environment.json").is_file()

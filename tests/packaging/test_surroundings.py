"""Builds as a user without rights: what they see, what they cannot reach, who owns what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from environments import leftovers
from load import load_factor
from puna.config.runtime import RuntimeSpec
from puna.errors import BuildError
from puna.home import Home
from puna.packaging import surroundings
from puna.packaging.command import BuildCancelledError
from puna.packaging.environment import build
from puna.packaging.surroundings import USER

pytestmark = pytest.mark.process
MOUNTS = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x00020000))"
BACKEND = """
import os, zipfile
def build_wheel(folder, settings=None, metadata=None):
    name = "who-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("who.py", f"UID = {os.getuid()}")
        wheel.writestr("who-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: who\\nVersion: 1\\n")
        wheel.writestr("who-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("who-1.dist-info/RECORD", "")
    return name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Builds run as nobody; its number."""
    if os.geteuid() != 0 or subprocess.run([sys.executable, "-c", MOUNTS], check=False).returncode:
        pytest.skip("only root, where it may mount, can give builds a user of their own")
    monkeypatch.setenv(USER, "nobody")
    chosen = surroundings.build_user()
    assert chosen is not None
    yield chosen.uid


def test_packages_and_run_lines_of_a_build_have_no_rights_and_see_no_secrets(
    home: Home, nobody: int, tmp_path: Path
) -> None:
    home.key.write_text("the key")
    home.database.write_text("the books")
    home.database.chmod(0o644)
    package = tmp_path / "who"
    package.mkdir()
    tmp_path.chmod(0o755)
    (package / "pyproject.toml").write_text(PROJECT + '[project]\nname = "who"\nversion = "1"\n')
    (package / "backend.py").write_text(BACKEND)
    reach = [home.key, home.database, Path.home() / ".ssh", Path("/etc/shadow")]
    lines: list[str] = []
    look = f"for f in {' '.join(map(str, reach))}; do "
    look += "ls $f/ 2>/dev/null && echo REACHED $f; cat $f 2>/dev/null && echo REACHED $f; done; true"
    assert "REACHED" in subprocess.run(look, shell=True, capture_output=True, text=True, check=True).stdout
    run = (
        "echo uid $(id -u) groups $(id -G)",
        look,
        f"touch /usr/puna {home.root}/puna {home.environments}/puna ../puna 2>/dev/null; "
        "ln -s /etc/passwd ../packages.txt 2>/dev/null; true",
        "test ! -e ../spec.yaml && touch here && python -c 'import who; print(\"built by\", who.UID)'",
        "head -c 100 /proc/1/environ 2>/dev/null && echo REACHED; true",
    )
    # The package lies where the cell shows it: its folder is named by a variable, as a folder of wheels would be.
    os.environ["PIP_FIND_LINKS"] = str(package)
    try:
        spec = RuntimeSpec(python_packages=(f"who @ {package.as_uri()}", "six==1.17.0"), run=run)
        built = build(spec, home, lines.append)
    finally:
        del os.environ["PIP_FIND_LINKS"]
    text = "\n".join(lines)
    assert f"uid {nobody} groups {nobody}" in text and f"built by {nobody}" in text
    assert "REACHED" not in text and "the key" not in text and "the books" not in text
    assert not any(path.exists() for path in (Path("/usr/puna"), home.root / "puna", home.environments / "puna"))
    assert not (built.path / "packages.txt").is_symlink() and "six==1.17.0" in built.packages
    owners = {path.lstat().st_uid for path in [built.path, *built.path.rglob("*")]}
    assert owners == {0} and (built.path / "run" / "here").exists()
    assert subprocess.run([built.python, "-I", "-c", "import six, who"], check=False).returncode == 0


def test_a_build_of_another_user_is_cancelled_as_well(home: Home, nobody: int) -> None:
    begun: list[float] = []
    lines: list[str] = []

    def cancelled() -> bool:
        if "hanging" in lines and not begun:
            begun.append(time.monotonic())
        return bool(begun)

    with pytest.raises(BuildCancelledError):
        build(RuntimeSpec(run=("trap '' TERM; echo hanging; sleep 600",)), home, lines.append, cancelled=cancelled)
    assert time.monotonic() - begun[0] < 5 * load_factor()
    assert [n for n in leftovers(home) if not n.startswith(".cache")] == []


def test_a_user_that_is_not_there_and_one_that_nobody_can_become_are_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(USER, "no-such-user-of-puna")
    with pytest.raises(BuildError, match="there is no such user"):
        build(RuntimeSpec(run=("true",)), home, lambda line: None)
    monkeypatch.setenv(USER, "nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(BuildError, match="only root"):
        build(RuntimeSpec(run=("true",)), home, lambda line: None)
    assert [n for n in leftovers(home) if not n.startswith(".cache")] == []

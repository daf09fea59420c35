"""Paths of a home: made on first use, private, and short enough for sockets."""

import os
from pathlib import Path

import pytest

from puna.home import SOCKET_PATH_BYTES, Home


def test_the_environment_names_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "h"))
    assert Home.default().root == tmp_path / "h"
    monkeypatch.delenv("PUNA_HOME")
    assert Home.default().root == Path.home() / ".puna"


def test_folders_are_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    assert oct(home.runs.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize("depth", [1, 12])
def test_socket_paths_always_fit(tmp_path: Path, depth: int) -> None:
    home = Home(tmp_path.joinpath(*["a-long-folder-name"] * depth))
    try:
        longest = max(os.fsencode(home.guard_socket("r" * 24)), os.fsencode(home.replica_socket("r" * 24)), key=len)
        assert len(longest) <= SOCKET_PATH_BYTES
        assert home.sockets.is_dir()
    finally:
        home.sockets.rmdir()


@pytest.mark.parametrize("depth", [1, 12])
def test_an_empty_folder_of_sockets_goes(tmp_path: Path, depth: int) -> None:
    home = Home(tmp_path.joinpath(*["a-long-folder-name"] * depth))
    folder = home.sockets
    home.control_socket.touch()
    home.drop_sockets()
    assert folder.is_dir()
    home.control_socket.unlink()
    home.drop_sockets()
    assert not folder.exists()

"""Commands of the command line, each in a process of its own that is forked from one which has loaded them.

A command that starts with Python takes a second of processor time to import what it needs, and stories type sixty. What
is read when Python starts cannot be had by a fork: `run` starts a Python when such a variable differs.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

ENV = dict(os.environ)
"""Of the process that loads the commands."""


def run(words: tuple[str, ...], env: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run `puna WORDS`.

    Raises:
        subprocess.TimeoutExpired: it had not ended in time, and is killed.
    """
    if {k: v for k, v in env.items() if _is_pythons(k)} != {k: v for k, v in ENV.items() if _is_pythons(k)}:
        argv = [sys.executable, "-m", "puna", *words]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    return _loaded().run(words, env, timeout_s)


def _is_pythons(variable: str) -> bool:
    return variable.startswith(("PYTHON", "LD_", "LC_", "LANG"))


@functools.cache
def _loaded() -> Loaded:
    return Loaded()


class Loaded:
    """The process that has loaded every command; it ends with this one."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, env=ENV, bufsize=0)
        self._lock = threading.Lock()
        atexit.register(self._close)

    def run(self, words: tuple[str, ...], env: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """One command at a time."""
        assert self._process.stdin and self._process.stdout
        with self._lock, tempfile.TemporaryDirectory(prefix="puna-command-") as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            order = {"words": words, "env": dict(env), "cwd": str(Path.cwd()), "out": str(out), "err": str(err)}
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            pid = int(self._process.stdout.readline())
            is_late = not select.select([self._process.stdout], [], [], timeout_s)[0]
            if is_late:
                os.kill(pid, signal.SIGKILL)
            code = int(self._process.stdout.readline())
            if is_late:
                raise subprocess.TimeoutExpired(["puna", *words], timeout_s, out.read_text(), err.read_text())
            return subprocess.CompletedProcess(["puna", *words], code, out.read_text(), err.read_text())

    def _close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _load() -> None:
    """Import what commands import, by one that fails."""
    from puna.cli import main, output

    for command in main.COMMANDS.values():
        command.load()
    for name in ("rich.console", "rich.table", "rich.progress"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as nowhere, contextlib.redirect_stdout(io.StringIO()):
        os.environ["PUNA_HOME"] = nowhere
        main.run(["ps", "--json"])
    output._consoles.clear()


def _serve() -> list[str]:
    """Fork for each order on stdin; returns the words of a command, in its process."""
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            os.environ.clear()
            os.environ.update(order["env"])
            os.chdir(order["cwd"])
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            for number, path in enumerate((os.devnull, order["out"], order["err"])):
                opened = os.open(path, flags if number else os.O_RDONLY, 0o600)
                os.dup2(opened, number)
                os.close(opened)
            return list(order["words"])
        os.write(1, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))
    sys.exit()


if __name__ == "__main__":
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # as a command does
    _load()
    _words = _serve()
    from puna.cli.main import main as _main

    _main(_words)

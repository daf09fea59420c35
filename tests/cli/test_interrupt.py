"""Ctrl-C at a real terminal: the bar goes, the cursor comes back, and the last line can be pasted."""

import fcntl
import os
import pty
import shlex
import struct
import sys
import termios
from pathlib import Path

import pytest

from cli.commands.test_training import RECIPE

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def at_a_terminal(words: list[str], home: Path, interrupt_after: bytes) -> tuple[int, bytes]:
    """Run puna in a pseudo-terminal of 80 columns and type Ctrl-C once it has written `interrupt_after`."""
    pid, terminal = pty.fork()
    if pid == 0:
        env = {**os.environ, "PUNA_HOME": str(home), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
        env.pop("COLUMNS", None)
        os.execve(sys.executable, [sys.executable, "-m", "puna", *words], env)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    written, typed = b"", False
    try:
        while piece := os.read(terminal, 65536):
            written += piece
            if not typed and interrupt_after in written:
                typed = os.write(terminal, b"\x03") == 1
    except OSError:
        pass  # a terminal whose last process has gone ends in EIO, not in an empty read
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), written


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the child only calls exec
def test_ctrl_c_leaves_a_clean_terminal_and_a_line_to_resume_with(tmp_path: Path) -> None:
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text(RECIPE.replace("max_steps: 5", "max_steps: 5000"))
    code, written = at_a_terminal(["train", str(recipe)], tmp_path / "home", b"tokens/s")
    assert code == 1 and b"tokens/s" in written and b"Traceback" not in written
    assert written.count(HIDE) == written.count(SHOW) > 0 and written.rfind(SHOW) > written.rfind(HIDE)
    after = written[written.rfind(SHOW) :].decode()
    assert "stopped by SIGINT" in after and "a checkpoint is saved" in after
    assert after.rstrip().endswith(f"puna train {shlex.quote(str(recipe))} --resume tiny-1")

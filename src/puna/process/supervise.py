"""A script that runs one command and ends with its owner, and all that the command has started with it.

Used as `python -I -S supervise.py command ...` in a session of its own; the owner keeps the other end of stdin open,
and `end` closes it. As a sub-reaper it stays the ancestor of the command's descendants, whatever sessions they make.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

if __name__ == "__main__":  # -I -S leaves no path to Puna; behind the standard library, so that nothing is hidden by it
    sys.path.append(__file__.rpartition("/puna/")[0])
from puna.process.tree import become_subreaper, kill_tree

OOM_SCORE = 500
"""Where memory ends, a build ends before the control plane and what serves."""
END_S = 2.5


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of this script that was started with a pipe as stdin, and all that it has started."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(END_S)
    except (OSError, subprocess.TimeoutExpired):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _watch() -> None:
    # The owner never writes: a read returns only when it has closed the pipe or has died.
    os.read(0, 1)
    kill_tree()
    os._exit(128 + signal.SIGKILL)


def _main() -> int:
    become_subreaper()
    # A handler and not "ignore", which the command would inherit: the group is told to end, and this ends last.
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_watch, daemon=True).start()
    try:
        child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error.strerror}\n")
        return 127
    # It may have ended already, or this machine does not let us: nothing depends on it.
    with contextlib.suppress(OSError), open(f"/proc/{child.pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE))
    status = child.wait()
    kill_tree()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_main())

"""A script that runs one command and ends with its owner, and all that the command has started with it.

Used as `python -I -S supervise.py command ...` in a session of its own; the owner keeps the other end of stdin open,
and `end` closes it. As a sub-reaper it stays the ancestor of the command's descendants, whatever sessions they make.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_CHILD_SUBREAPER = 36
OOM_SCORE = 500
"""Where memory ends, a build ends before the control plane and what serves."""
END_S = 2.5
OTHERS_S = 2.0
"""What may not be killed (a command under sudo) is waited for no longer."""


def end(process: subprocess.Popen[bytes]) -> None:
    """End a leash that was started with a pipe as stdin, and everything on it; returns when it is gone."""
    assert process.stdin is not None
    try:
        process.stdin.close()
        process.wait(END_S)
    except (OSError, subprocess.TimeoutExpired):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def _watch() -> None:
    # The owner never writes: a read returns only when it has closed the pipe or has died.
    os.read(0, 1)
    _kill_tree()
    os._exit(128 + signal.SIGKILL)


def _tree() -> list[int]:
    """Every living descendant of this process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except (OSError, ValueError):
                continue  # it has just ended
            if state not in (b"Z", b"X"):
                children.setdefault(int(parent), []).append(int(name))
    found, todo = [], [os.getpid()]
    while todo:
        mine = children.get(todo.pop(), [])
        found += mine
        todo += mine
    return found


def _kill_tree() -> None:
    """SIGKILL every descendant until there is none: they may fork while this runs."""
    begun, pause_s = time.monotonic(), 0.002
    while found := _tree():
        refused = 0
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except PermissionError:
                refused += 1
            except ProcessLookupError:
                pass
        if refused == len(found) and time.monotonic() - begun > OTHERS_S:
            return
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 1.5)


def _main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A handler and not "ignore", which the command would inherit: the group is told to end, and this ends last.
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_watch, daemon=True).start()
    try:
        child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error.strerror}\n")
        return 127
    try:
        with open(f"/proc/{child.pid}/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(OOM_SCORE))
    except OSError:
        pass  # it has ended already, or this machine does not let us: nothing depends on it
    status = child.wait()
    _kill_tree()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_main())

"""A script that runs one command and dies with its owner: when stdin ends, the whole process group is killed.

Used as `python -I leash.py command ...` in a session of its own; the owner keeps the other end of stdin open.
"""

import os
import signal
import subprocess
import sys
import threading


def _watch() -> None:
    # The owner never writes: a read returns only when it has closed the pipe or has died.
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def _main() -> int:
    threading.Thread(target=_watch, daemon=True).start()
    try:
        status = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error.strerror}\n")
        return 127
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_main())

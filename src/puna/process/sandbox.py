"""A script that becomes a command of another user, to whom folders that are closed to it look empty but for a few.

Used as `python -I -S sandbox.py CONFIG command ...` by root; CONFIG is JSON: `uid`, `gid`, `folder` to start in,
`covers` (folders that are hidden), `binds` (what is shown of them, and whether it may be written to).
"""

import ctypes
import json
import os
import sys

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_NO_NEW_PRIVS = 38
LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(origin: str, target: str, kind: str, flags: int, options: str = "") -> None:
    words = [os.fsencode(word) for word in (origin, target, kind)]
    _check(LIBC.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), f"mount on {target}")


def _cover(covers: list[str], binds: list[tuple[str, bool]]) -> None:
    """Hide `covers` behind empty folders, and show `binds` where they were; in this process's own view."""
    _check(LIBC.unshare(CLONE_NEWNS), "unshare")
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    opened = {path: os.open(path, os.O_PATH) for path, _ in binds}
    for folder in covers:
        _mount("cell", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4m")
    for path, is_writable in sorted(binds):  # a folder before what is in it
        if not os.path.lexists(path):
            is_folder = os.path.isdir(f"/proc/self/fd/{opened[path]}")
            os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
            if not is_folder:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        _mount(f"/proc/self/fd/{opened[path]}", path, "", MS_BIND)
        if not is_writable:
            _mount("none", path, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    for fd in opened.values():
        os.close(fd)
    for folder in covers:
        _mount("none", folder, "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, "mode=755")


def _main() -> None:
    config, argv = json.loads(sys.argv[1]), sys.argv[2:]
    try:
        _cover(config["covers"], [(path, bool(writable)) for path, writable in config["binds"]])
        os.setgroups([])
        os.setresgid(config["gid"], config["gid"], config["gid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
        _check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        os.umask(0o022)
        os.chdir(config["folder"])
    except OSError as error:
        sys.exit(f"error: this build cannot run as user {config['uid']}: {error.strerror}")
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    _main()

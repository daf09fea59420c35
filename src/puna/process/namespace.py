"""A script of its own (`python -I -S`): becomes a command that sees other folders than the rest of the machine.

    namespace.py volumes '{"/var/nfs-mount/data": "/home/me/.puna/volumes/data"}' command argument ...
    namespace.py sandbox '{"uid": ..., "gid": ..., "folder": ..., "covers": [...], "binds": [...]}' command argument ...

`volumes` binds each folder at its path (inside a user namespace where it is not root). `sandbox`, for root, becomes
another user, to whom `covers`, folders that are closed to it, look empty but for `binds`: pairs of a path and whether
it may be written to. Nothing of it is seen outside, and nothing is left when the command ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import stat
import sys
import tempfile
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 2, 38
EXIT_REFUSED = 96

libc = ctypes.CDLL(None, use_errno=True)


def command(kind: str, config: dict[str, Any], argv: list[str]) -> list[str]:
    """The words that run `argv` in a namespace of `kind`, `volumes` or `sandbox`."""
    return [sys.executable, "-I", "-S", __file__, kind, json.dumps(config), *argv]


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2).

    Raises:
        OSError: as the kernel says.
    """
    words = [os.fsencode(word) for word in (source, target, kind)]
    _check(f"mount {target}", libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)))


def _check(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# -- volumes


def mount_volumes(mounts: dict[str, str]) -> None:
    """Enter a namespace in which each path of `mounts` shows its folder.

    Raises:
        OSError: the kernel does not let us, or a path cannot be made.
    """
    death = ctypes.c_int()
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(death))
    uid, gid, here = os.geteuid(), os.getegid(), os.getcwd()
    if uid != 0 or libc.unshare(CLONE_NEWNS) != 0:
        _check("unshare", libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    libc.prctl(PR_SET_PDEATHSIG, death.value, 0, 0, 0)  # new credentials have cleared it
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    for path, folder in mounts.items():
        _make(path)
        mount(folder, path, "", MS_BIND | MS_REC)
    os.chdir(here)  # by its path: what it lay in may be covered now


def _make(path: str) -> None:
    """A folder at `path`: on the disk where we may, else in a memory file system that covers what lies above it."""
    if os.path.isdir(path):
        return
    with contextlib.suppress(OSError):
        os.makedirs(path)
        return
    above = os.path.dirname(path)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    if above == "/":
        raise OSError(f"only root can make {path}")
    _cover(above)
    os.makedirs(path)


def _cover(folder: str) -> None:
    """Put a memory file system over `folder` with everything in it that was there before."""
    stage = tempfile.mkdtemp(prefix="puna-mounts-")
    mount(folder, stage, "", MS_BIND | MS_REC)
    mount("tmpfs", folder, "tmpfs", 0)
    for entry in os.scandir(stage):
        place = os.path.join(folder, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), place)
            continue
        if entry.is_dir(follow_symlinks=False):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(entry.path, place, "", MS_BIND | MS_REC)
    os.chmod(folder, stat.S_IMODE(os.stat(stage).st_mode))
    _check("umount", libc.umount2(os.fsencode(stage), MNT_DETACH))
    os.rmdir(stage)


# -- sandbox


def enter_sandbox(config: dict[str, Any]) -> None:
    """Hide folders, show what is needed of them, and become the user of `config`.

    Raises:
        OSError: the kernel does not let us.
    """
    covers, binds = config["covers"], [(path, bool(writable)) for path, writable in config["binds"]]
    _check("unshare", libc.unshare(CLONE_NEWNS))
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    opened = {path: os.open(path, os.O_PATH) for path, _ in binds}
    for folder in covers:
        mount("cell", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4m")
    for path, is_writable in sorted(binds):  # a folder before what is in it
        if not os.path.lexists(path):
            is_folder = os.path.isdir(f"/proc/self/fd/{opened[path]}")
            os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
            if not is_folder:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(f"/proc/self/fd/{opened[path]}", path, "", MS_BIND)
        if not is_writable:
            mount("none", path, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    for fd in opened.values():
        os.close(fd)
    for folder in covers:
        mount("none", folder, "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, "mode=755")
    os.setgroups([])
    os.setresgid(config["gid"], config["gid"], config["gid"])
    os.setresuid(config["uid"], config["uid"], config["uid"])
    _check("prctl", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.umask(0o022)
    os.chdir(config["folder"])


def main() -> None:
    """Enter the namespace and become the command; never returns."""
    kind, config, argv = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
    try:
        if kind == "volumes":
            mount_volumes(config)
        else:
            enter_sandbox(config)
    except OSError as error:
        if kind == "sandbox":
            sys.exit(f"error: this build cannot run as user {config['uid']}: {error.strerror}")
        os.write(2, f"puna: no volume can be mounted: {error}\n".encode())
        sys.exit(EXIT_REFUSED)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()

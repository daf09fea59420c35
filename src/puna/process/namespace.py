"""A script of its own (`python -I -S`): runs a command that sees volumes where nobody else does.

    namespace.py '{"/var/nfs-mount/data": "/home/me/.puna/volumes/data"}' command argument ...

It makes a mount namespace (inside a user namespace where it is not root), binds each folder at its path, and becomes
the command. Nothing of it is seen outside, and nothing is left when the command ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import stat
import sys
import tempfile

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2
EXIT_REFUSED = 96

libc = ctypes.CDLL(None, use_errno=True)


def enter(mounts: dict[str, str]) -> None:
    """Be in a namespace in which each path of `mounts` shows its folder.

    Raises:
        OSError: the kernel does not let us, or a path cannot be made.
    """
    death = ctypes.c_int()
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(death))
    uid, gid, here = os.geteuid(), os.getegid(), os.getcwd()
    if uid != 0 or libc.unshare(CLONE_NEWNS) != 0:
        _call("unshare", libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    libc.prctl(PR_SET_PDEATHSIG, death.value, 0, 0, 0)  # new credentials have cleared it
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    for path, folder in mounts.items():
        _make(path)
        mount(folder, path, None, MS_BIND | MS_REC)
    os.chdir(here)  # by its path: what it lay in may be covered now


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """mount(2).

    Raises:
        OSError: as the kernel says.
    """
    kinds = None if kind is None else kind.encode()
    _call(f"mount {target}", libc.mount(os.fsencode(source), os.fsencode(target), kinds, flags, None))


def _call(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


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
    mount(folder, stage, None, MS_BIND | MS_REC)
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
        mount(entry.path, place, None, MS_BIND | MS_REC)
    os.chmod(folder, stat.S_IMODE(os.stat(stage).st_mode))
    _call("umount", libc.umount2(os.fsencode(stage), MNT_DETACH))
    os.rmdir(stage)


def main() -> None:
    """`namespace.py MOUNTS COMMAND...`: never returns."""
    try:
        enter(json.loads(sys.argv[1]))
    except OSError as error:
        os.write(2, f"puna: no volume can be mounted: {error}\n".encode())
        sys.exit(EXIT_REFUSED)
    os.execve(sys.argv[2], sys.argv[2:], dict(os.environ))


if __name__ == "__main__":
    main()

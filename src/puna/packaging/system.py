"""What an environment needs of the machine itself: apt packages and the NVIDIA driver."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from puna.errors import BuildError
from puna.packaging import command

# Names that distributions have dropped since the apps were written, and what carries their files now.
RENAMED = {"libgl1-mesa-glx": "libgl1", "libglib2.0-0": "libglib2.0-0t64"}

# Patterns off: a name that no package has is not taken for a regular expression that half of them match.
INSTALL = ("apt-get", "-o", "APT::Cmd::Pattern-Only=true", "install", "-y", "-q", "--no-install-recommends")


def ensure_packages(
    names: tuple[str, ...], env: Mapping[str, str], log: Callable[[str], None], cancelled: Callable[[], bool]
) -> None:
    """Install the apt packages that are missing, where that is allowed.

    Raises:
        BuildError: packages are missing and may not be installed, or apt failed.
    """
    if not names:
        return
    if shutil.which("dpkg-query", path=env["PATH"]) is None:
        log(f"warning: no dpkg here, so nobody looked for the system packages {', '.join(names)}")
        return
    missing = [name for name in names if not _is_installed(name, env)]
    for name in [n for n in missing if n in RENAMED and _is_installed(RENAMED[n], env)]:
        log(f"system package {name}: {RENAMED[name]} is its name on this machine, and is installed")
        missing.remove(name)
    if not missing:
        log(f"system packages: {', '.join(names)} are installed")
        return
    by_hand = f"sudo apt-get update && sudo apt-get install -y {' '.join(missing)}"
    allowed = os.environ.get("PUNA_APT", "1" if os.geteuid() == 0 else "0") == "1"
    if not allowed or shutil.which("apt-get", path=env["PATH"]) is None:
        raise BuildError(f"missing system packages: {', '.join(missing)}", f"{by_hand}    # or set PUNA_APT=1")
    _install(missing, env, log, cancelled, by_hand)


def _install(
    missing: list[str],
    env: Mapping[str, str],
    log: Callable[[str], None],
    cancelled: Callable[[], bool],
    by_hand: str,
) -> None:
    log(f"installing system packages: {', '.join(missing)}")
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt_env = {**env, "DEBIAN_FRONTEND": "noninteractive"}
    # A failed update is no failure yet: the lists that are there may do.
    command.run([*prefix, "apt-get", "update", "-q"], apt_env, Path("/"), log=log, cancelled=cancelled)
    install = [*prefix, *INSTALL, "--", *missing]
    status, lines = command.run(install, apt_env, Path("/"), log=log, cancelled=cancelled)
    if status != 0:
        why = next((line for line in lines if line.startswith("E: ")), f"apt-get ended with status {status}")
        raise BuildError(f"system packages: {why}", by_hand, "\n".join(lines[-20:]))


def _is_installed(name: str, env: Mapping[str, str]) -> bool:
    plain = name.partition("=")[0]
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}\n", plain]
    found = subprocess.run(query, capture_output=True, text=True, env=dict(env), check=False)
    return "installed" in found.stdout.split()


def warn_of_driver(cuda_version: str | None, log: Callable[[str], None]) -> None:
    """Say so when the NVIDIA driver is older than the CUDA version that the app names."""
    if cuda_version is None or shutil.which("nvidia-smi") is None:
        return
    try:
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return  # a driver that does not answer fails the app's validation, with its own words
    found = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)\.(\d+)", shown)
    wanted = [int(part) for part in (cuda_version + ".0").split(".")[:2]]
    if found and [int(found[1]), int(found[2])] < wanted:
        log(f"warning: the app wants CUDA {cuda_version}; the driver here goes up to {found[1]}.{found[2]}")

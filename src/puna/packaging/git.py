"""Projects in git repositories: one commit of one branch, fetched over https or ssh, from hosts that may be asked."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from puna.artifacts import Source
from puna.config.project import Project
from puna.config.repository import Address, Repository, address
from puna.errors import MachineError, ProjectError, PunaError, UsageError
from puna.home import Home
from puna.packaging import archive, source
from puna.packaging.command import masked
from puna.process.command import OutputError, run_bounded

TIMEOUT_S = 300.0
"""Of all that is asked for one fetch."""
MAX_FILE_BYTES = 1 << 30  # of one file that git writes: the pack of a shallow fetch
MAX_MEMORY_BYTES = 2 << 30  # a pack may say of a few bytes that they are a huge file, and git makes room for it
MAX_TREE_BYTES, MAX_TREE_FILES = 4 * archive.MAX_BYTES, 5 * archive.MAX_FILES
"""Of what is checked out: one file of a pack may stand in a million places. Some of it may be on the ignore list."""
LIST_BYTES = 64 << 20
NAT64 = ipaddress.ip_network("64:ff9b::/96")
GLOBAL6 = ipaddress.ip_network("2000::/3")
ALLOWED_HOSTS = "PUNA_GIT_HOSTS"
"""Hosts, separated by commas, that may be asked although their addresses are private, and over http too."""
LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Credential:
    """A token for https, or a private key for ssh."""

    token: str = ""
    ssh_key: str = ""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Credential:
        """From a secret set's values: GIT_TOKEN, GIT_SSH_KEY.

        Raises:
            UsageError: it has neither.
        """
        made = cls(values.get("GIT_TOKEN", ""), values.get("GIT_SSH_KEY", ""))
        if not (made.token or made.ssh_key):
            raise UsageError(
                "the secret has neither GIT_TOKEN nor GIT_SSH_KEY", "puna secret set my-git GIT_TOKEN=... says who asks"
            )
        return made


@dataclass(frozen=True)
class Fetched:
    """A snapshot, the commit that it is of, and its settings."""

    source: Source
    commit: str
    project: Project
    """Its inferless.yaml; named like the repository or its folder when that names nothing."""


def head(repository: Repository, credential: Credential | None = None) -> str:
    """The commit at the end of the branch, without fetching it.

    Raises:
        ProjectError: the repository or the branch cannot be read.
        UsageError: the host may not be asked.
        MachineError: git is not installed.
    """
    with _settings(repository, credential) as session:
        refs = _git(["ls-remote", "--", repository.url, repository.ref], session, repository)
    found = re.match(r"[0-9a-f]{40,64}", refs)
    if found is None:
        raise _no_branch(repository)
    return found[0]


def fetch(repository: Repository, home: Home, credential: Credential | None = None) -> Fetched:
    """Fetch the branch's last commit, check its structure, and keep a snapshot of its folder.

    Submodules, hooks, filters and LFS objects are not followed.

    Raises:
        ProjectError: the repository, branch or folder cannot be read, or holds no app that could be built.
        SchemaError, RuntimeSpecError: as `source.check`.
        UsageError: the host may not be asked.
        MachineError: git is not installed, or the disk is full.
    """
    home.sources.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=home.sources, prefix=f".draft-{os.getpid()}-git-") as temporary,
        _settings(repository, credential) as session,
    ):
        files, store = Path(temporary) / "files" / repository.name, Path(temporary) / "store"
        files.mkdir(parents=True)
        _git(["init", "-q", "--bare", "--template=", str(store)], session, repository)
        fetching = ["fetch", "-q", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-commit-graph"]
        _git([*fetching, "--", repository.url, f"{repository.ref}:refs/puna/head"], session, repository, store)
        commit = (store / "FETCH_HEAD").read_text().split()[0]
        _measure(repository, session, store)
        out = [f"--work-tree={files}", "-c", "core.bare=false"]
        part = repository.folder or "."
        _git([*out, "checkout", "-q", "-f", "refs/puna/head", "--", part], session, repository, store)
        source.check_links(files)  # before anything is read: what a link leads to would stand in an error
        folder = _inside(files, repository)
        project = source.check(folder)
        _no_pointers(folder)
        return Fetched(source.snapshot(folder, home), commit, project)


def _measure(repository: Repository, session: _Session, store: Path) -> None:
    """Refuse a tree that is too large, before any of it is written."""
    listing = ["ls-tree", "-r", "-l", "-z", "refs/puna/head", *(["--", repository.folder] if repository.folder else [])]
    too_large = ProjectError(
        f"{repository.url} is over {MAX_TREE_BYTES >> 20} MiB or {MAX_TREE_FILES} files",
        "name the folder that holds app.py, or keep data elsewhere",
    )
    try:
        entries = _git(listing, session, repository, store).split("\0")[:-1]
    except OutputError:
        raise too_large from None
    sizes = [size for size in (entry.partition("\t")[0].split()[3] for entry in entries) if size.isdigit()]
    if len(entries) > MAX_TREE_FILES or sum(map(int, sizes)) > MAX_TREE_BYTES:
        raise too_large
    if any(entry.count("/") >= archive.MAX_DEPTH for entry in entries):
        raise ProjectError(f"{repository.url} has over {archive.MAX_DEPTH} folders in one another", "flatten it")
    if not entries and repository.folder:
        raise _no_folder(repository)


def _no_folder(repository: Repository) -> ProjectError:
    hint = "name the folder that holds app.py"
    return ProjectError(f"{repository.url} has no folder {repository.folder!r}", hint)


def _inside(files: Path, repository: Repository) -> Path:
    folder = (files / repository.folder).resolve()
    if not folder.is_relative_to(files.resolve()) or not folder.is_dir():
        raise _no_folder(repository)
    return folder


def _no_pointers(folder: Path) -> None:
    for name, file in source.listing(folder):
        if file.stat().st_size < 1024 and file.read_bytes().startswith(LFS):
            raise ProjectError(
                f"{name} is kept in Git LFS, which is not fetched", "publish weights with `puna publish` instead"
            )


@dataclass(frozen=True)
class _Session:
    """Environment and deadline of the git commands for one repository."""

    env: Mapping[str, str]
    until: float
    """`time.monotonic()`."""


@contextmanager
def _settings(repository: Repository, credential: Credential | None) -> Iterator[_Session]:
    """The environment in which git asks this repository and nobody else, as nobody but `credential`."""
    until = time.monotonic() + TIMEOUT_S
    where = address(repository.url)
    ip = _resolved(where)
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE")}
    env |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": where.scheme,
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "HOME": os.devnull,
        "LC_ALL": "C",
    }
    config = {
        "http.followRedirects": "false",
        # The address that was looked at is the one that is asked, whatever the name means a moment later.
        "http.curloptResolve": f"{where.host}:{where.port}:{f'[{ip}]' if ':' in ip else ip}",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "30",
        "core.hooksPath": os.devnull,
        "pack.threads": "2",  # each has its own share of the memory
        "core.protectNTFS": "true",
        "fetch.fsckObjects": "true",
        "transfer.fsckObjects": "true",
    }
    with tempfile.TemporaryDirectory(prefix="puna-git-") as folder, _in_memory(credential) as key:
        if where.scheme == "ssh":
            env["GIT_SSH_COMMAND"] = _ssh(where, ip, Path(folder), key)
        elif credential is not None and credential.token:
            pair = base64.b64encode(f"x-access-token:{credential.token}".encode()).decode()
            config["http.extraHeader"] = f"Authorization: Basic {pair}"
        # In the environment: arguments can be read by everybody on the machine.
        env["GIT_CONFIG_COUNT"] = str(len(config))
        for number, (name, value) in enumerate(config.items()):
            env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        yield _Session(env, until)


@contextmanager
def _in_memory(credential: Credential | None) -> Iterator[str]:
    """A path at which ssh finds the private key, which no disk ever sees; empty when there is none."""
    if credential is None or not credential.ssh_key:
        yield ""
        return
    with os.fdopen(os.memfd_create("key"), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # ssh takes no key that others may read
        file.write(credential.ssh_key.strip().encode() + b"\n")
        file.flush()
        # Of this process: ssh closes every descriptor that it inherits.
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _ssh(where: Address, ip: str, folder: Path, key: str) -> str:
    options = ["-F", os.devnull, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"]
    options += ["-o", f"HostName={ip}", "-o", f"HostKeyAlias={where.host}", "-o", "ProxyCommand=none"]
    options += ["-o", "ConnectTimeout=20", "-o", "ForwardAgent=no", "-o", "IdentitiesOnly=yes"]
    known = Path(os.environ.get("HOME", os.devnull)) / ".ssh" / "known_hosts"
    options += ["-o", f"UserKnownHostsFile={known if known.is_file() else folder / 'known_hosts'}"]
    if key:
        options += ["-i", key]
    return shlex.join(["ssh", *options])


def _resolved(where: Address) -> str:
    """An address of the host that may be asked.

    Raises:
        UsageError: it is private and the host is not among those allowed, or http is not allowed to it.
        ProjectError: the host has no address.
    """
    allowed = {host.strip().lower() for host in os.environ.get(ALLOWED_HOSTS, "").split(",") if host.strip()}
    is_allowed = where.host.lower() in allowed
    hint = f"{ALLOWED_HOSTS}={where.host} in the environment of `puna up` allows it"
    if where.scheme == "http" and not is_allowed:
        raise UsageError(f"{where.host} may not be asked over http, which others can read and change", hint)
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ProjectError(f"{where.host} cannot be found: {error.strerror or error}", "check the URL") from None
    addresses = [str(entry[4][0]).split("%")[0] for entry in found]
    if not is_allowed and not all(_is_public(ip) for ip in addresses):
        raise UsageError(f"{where.host} is at a private address, {addresses[0]}", hint)
    return addresses[0]


def _is_public(text: str) -> bool:
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:  # how a network without IPv4 reaches it
            return _is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip not in GLOBAL6:
            return False
    return ip.is_global and not ip.is_multicast


def _git(arguments: list[str], session: _Session, repository: Repository, store: Path | None = None) -> str:
    where = [f"--git-dir={store}"] if store is not None else []
    if shutil.which("git", path=session.env.get("PATH")) is None:
        raise MachineError("git is not installed", "apt-get install git")
    try:
        status, output, errors = run_bounded(
            ["git", *where, *arguments],
            session.env,
            time_s=max(session.until - time.monotonic(), 0.0),
            memory_bytes=MAX_MEMORY_BYTES,
            file_bytes=MAX_FILE_BYTES,
            output_bytes=LIST_BYTES,
        )
    except TimeoutError:
        raise ProjectError(
            f"{repository.url} was not fetched within {TIMEOUT_S:g} s", "try again, or make it smaller"
        ) from None
    if status != 0:
        raise _explained(repository, errors.decode(errors="replace"))
    return output.decode(errors="replace")


def _explained(repository: Repository, said: str) -> PunaError:
    detail = masked(said).strip()[-2000:]
    low = said.lower()
    if "couldn't find remote ref" in low:
        return _no_branch(repository)
    private = ("authentication failed", "could not read username", "permission denied", "not found", "403", "401")
    if any(word in low for word in private):
        return ProjectError(
            f"{repository.url} cannot be read: it is private, or not there",
            "check the URL; for a private one: `puna secret set my-git GIT_TOKEN=...`, then --credential my-git",
            detail,
        )
    if "redirect" in low or "returned error: 30" in low:
        return ProjectError(f"{repository.url} has moved", "use the address that a browser ends at", detail)
    return ProjectError(f"{repository.url} could not be fetched", "see the detail", detail)


def _no_branch(repository: Repository) -> ProjectError:
    wanted = f"no branch {repository.branch!r}" if repository.branch else "no commit"
    return ProjectError(f"{repository.url} has {wanted}", "git ls-remote --heads URL lists its branches")

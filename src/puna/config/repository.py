"""URL, branch and folder of a project in git, and which of them are none. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from puna.errors import UsageError

PORTS = {"https": 443, "http": 80, "ssh": 22}
CREDENTIALS = re.compile(r"(?<=://)[^/\s]+(?=@)")
"""The part of an address that opens it, and is shown to nobody."""
BRANCH = re.compile(r"(?!-)(?!.*(\.\.|//|@\{|\.lock(/|$)))[A-Za-z0-9._/+@-]{1,200}(?<![./])")
FOLDER = re.compile(r"[A-Za-z0-9._ +@-]+(/[A-Za-z0-9._ +@-]+)*")
SCP = re.compile(r"(?P<user>[A-Za-z0-9][A-Za-z0-9._-]*)@(?P<host>[A-Za-z0-9.-]+):(?P<path>(?!/)[A-Za-z0-9._/~-]+)")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
PATH = re.compile(r"/[A-Za-z0-9._/~%+-]+")


@dataclass(frozen=True)
class Repository:
    """The place of a project: a URL, a branch (the repository's own choice when empty) and a folder in it."""

    url: str
    branch: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        """Refuse what git, ssh or the file system would take for something else.

        Raises:
            UsageError: the URL, branch or folder is none.
        """
        address(self.url)
        if self.branch and not BRANCH.fullmatch(self.branch):
            raise UsageError(f"{self.branch!r} is no name of a branch", "e.g. main")
        parts = self.folder.split("/")
        if self.folder and (not FOLDER.fullmatch(self.folder) or {".", "..", ".git"} & set(parts)):
            raise UsageError(f"{self.folder!r} is no folder of a repository", "e.g. apps/chat")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return address(self.url).path.rstrip("/").rpartition("/")[2].removesuffix(".git") or "app"

    @property
    def ref(self) -> str:
        """The reference that is fetched."""
        return f"refs/heads/{self.branch}" if self.branch else "HEAD"


@dataclass(frozen=True)
class Address:
    """The parts of a repository's URL."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def same(self) -> str:
        """Equal for all ways to write one repository: over https and ssh, with and without `.git`."""
        return f"{self.host.lower()}/{self.path.strip('/').removesuffix('.git').lower()}"


def address(url: str) -> Address:
    """The parts of `https://host/path`, `ssh://user@host/path` or `user@host:path`.

    Raises:
        UsageError: it is another kind of URL, or one with a password in it.
    """
    short = SCP.fullmatch(url)
    if short is not None and HOST.fullmatch(short["host"]):
        return Address("ssh", short["host"], 22, "/" + short["path"])
    shown = CREDENTIALS.sub("***", url)
    refused = UsageError(
        f"{shown!r} cannot be fetched from", "e.g. https://github.com/acme/chat or git@github.com:acme/chat.git"
    )
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
    except ValueError:
        raise refused from None
    if parts.scheme not in PORTS or not HOST.fullmatch(parts.hostname or "") or parts.query or parts.fragment:
        raise refused
    plain = unquote(parts.path)
    if not PATH.fullmatch(parts.path) or not plain.isprintable() or ".." in plain.split("/"):
        raise refused
    if parts.password is not None or (parts.username and parts.scheme != "ssh"):
        raise UsageError(
            f"{shown!r} has credentials in it, and would be shown to others",
            "puna secret set my-git GIT_TOKEN=..., and name the secret",
        )
    if parts.username and not re.fullmatch(r"[A-Za-z0-9._]+", parts.username):
        raise refused
    return Address(parts.scheme, str(parts.hostname), port, parts.path)

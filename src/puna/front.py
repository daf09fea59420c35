"""The address at which callers come in: listened on, with TLS, and as they type it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from puna.errors import UsageError

DEFAULT_PORT = 8000


@dataclass(frozen=True)
class Tls:
    """Certificate and key, PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Front:
    """The address of a gateway, and its limits for connections."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    insecure: bool = False
    """Allows another address than this machine's own without TLS."""
    tls: Tls | None = None
    url: str = ""
    """The address that callers type, where that is not what is listened on: behind a proxy, or by a name."""
    cors_origins: tuple[str, ...] = ()
    """Sites whose pages may call inference from a browser; `*` is all of them."""
    keep_alive_s: int = 620
    """A connection between two requests is kept so long: longer than proxies keep theirs (GCP 600 s, AWS 60 s, nginx
    60 s), so that it is never this side that hangs up as a request is on its way."""
    per_address: int = 1024
    """Connections that a gateway takes from one address; from this machine's own, where a proxy may be, any number."""

    def address(self, port: int) -> str:
        """The address that it listens at, once `port` is known."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"

    def check(self) -> None:
        """Raise UsageError where a number makes no sense."""
        if self.keep_alive_s < 1:
            raise UsageError(f"--keep-alive {self.keep_alive_s} is no time", "puna up --keep-alive 620")
        if self.per_address < 1:
            raise UsageError(f"--per-address {self.per_address} lets nobody in", "puna up --per-address 1024")

    @property
    def origins(self) -> tuple[str, ...]:
        """`cors_origins`, checked.

        Raises:
            UsageError: one is no origin.
        """
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != "*" and (
                parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise UsageError(f"{origin!r} is no origin of a page", "puna up --cors-origin https://app.example.com")
        return self.cors_origins

    @property
    def public_url(self) -> str:
        """`url`, checked; empty when there is none.

        Raises:
            UsageError: it is no address of a whole site.
        """
        parts = urlsplit(self.url)
        if self.url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/")):
            raise UsageError(f"{self.url!r} is no address of a site", "puna up --url https://puna.example.com")
        return self.url.rstrip("/")

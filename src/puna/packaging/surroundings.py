"""The environment variables of a build: what package indexes need, and none of the user's secrets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Where packages come from and how to get there. Everything else, tokens above all, stays outside.
_KEPT = (
    "LANG",
    "LC_ALL",
    "TZ",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CUDA_HOME",
    "LD_LIBRARY_PATH",
    "PYENV_ROOT",
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_INDEX_STRATEGY",
    "UV_FIND_LINKS",
    "UV_OFFLINE",
    "UV_SYSTEM_CERTS",
    "UV_NATIVE_TLS",
    "UV_INSECURE_HOST",
    "UV_TORCH_BACKEND",
    "UV_HTTP_TIMEOUT",
    "UV_CONSTRAINT",
    "UV_LINK_MODE",
)
_PIP_PREFIX = "PIP_"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build_environment(scratch: Path, venv: Path) -> dict[str, str]:
    """The variables of every command of a build; HOME and TMPDIR lie in `scratch`, the venv comes first on PATH."""
    found = {name: os.environ[name] for name in _KEPT if name in os.environ}
    found |= {name: value for name, value in os.environ.items() if name.startswith(_PIP_PREFIX)}
    for name in ("home", "tmp"):
        (scratch / name).mkdir(parents=True)
    found |= {
        "PATH": path_after(venv),
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "VIRTUAL_ENV": str(venv),
        "UV_CACHE_DIR": uv_cache(),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON_INSTALL_DIR": _uv_pythons(),
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh",
    }
    return _uv_from_pip(found) | found | _config_files()


def path_after(venv: Path) -> str:
    """PATH with the programs of `venv` first, then the machine's, without those of Puna's own environment."""
    own = os.path.join(sys.prefix, "bin") if sys.prefix != sys.base_prefix else ""
    outer = [folder for folder in (os.environ.get("PATH") or _PATH).split(os.pathsep) if folder not in ("", own)]
    return os.pathsep.join([str(venv / "bin"), *outer])


def uv_cache() -> str:
    """Where uv keeps packages."""
    # The user's own cache, so that packages are hard links and a second environment costs seconds.
    if given := os.environ.get("UV_CACHE_DIR"):
        return given
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv")


def _uv_pythons() -> str:
    if given := os.environ.get("UV_PYTHON_INSTALL_DIR"):
        return given
    return str(Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "uv" / "python")


def python_path(path: str) -> str:
    """PATH for the search for an interpreter: pyenv's versions instead of its shims, which fail unless chosen."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    plain = [folder for folder in path.split(os.pathsep) if not folder.rstrip("/").endswith("/shims")]
    return os.pathsep.join([*plain, *sorted(map(str, versions.glob("*/bin")), reverse=True)])


def _uv_from_pip(found: dict[str, str]) -> dict[str, str]:
    """pip's variables in uv's words, so that a machine set up for pip works."""
    links = found.get("PIP_FIND_LINKS", "").split()
    pairs = {
        # uv stops at a folder that is not there, where pip goes on.
        "UV_FIND_LINKS": ",".join(link for link in links if "://" in link or Path(link).expanduser().exists()),
        "UV_DEFAULT_INDEX": "" if "UV_INDEX_URL" in found else found.get("PIP_INDEX_URL", ""),
        "UV_INDEX": "" if "UV_EXTRA_INDEX_URL" in found else found.get("PIP_EXTRA_INDEX_URL", ""),
        "UV_INSECURE_HOST": found.get("PIP_TRUSTED_HOST", ""),
        "SSL_CERT_FILE": found.get("PIP_CERT", ""),
    }
    # pip takes the best version of all indexes, and these indexes were written for pip.
    pairs["UV_INDEX_STRATEGY"] = "unsafe-best-match" if pairs["UV_INDEX"] else ""
    return {name: value for name, value in pairs.items() if value}


def _config_files() -> dict[str, str]:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = {"UV_CONFIG_FILE": config / "uv" / "uv.toml", "PIP_CONFIG_FILE": config / "pip" / "pip.conf"}
    given = {name: os.environ[name] for name in files if name in os.environ}
    return {name: str(path) for name, path in files.items() if path.is_file()} | given

"""The contents of an app's environment: inferless-runtime-config.yaml, read into plain words that no shell will see."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from puna.config.reading import MAX_YAML_BYTES, parse_yaml, read_yaml, shown
from puna.errors import RuntimeSpecError, nearest

FILE_NAMES = ("inferless-runtime-config.yaml", "inferless-runtime.yaml", "runtime.yaml", "config.yaml")
KEYS = ("cuda_version", "base_image", "python_version", "system_packages", "python_packages", "run")
# What an app without a runtime file may expect to import.
DEFAULT_PACKAGES = ("torch==2.13.0", "transformers==5.23.0", "safetensors", "numpy", "pillow", "requests")

# pip's options that may stand in an entry, and how many words each takes. All others are refused: `-r`, `-c`,
# `--target`, `--config-settings` and their kind read or write files of the machine that builds.
_OPTIONS = {
    "--index-url": 1,
    "--extra-index-url": 1,
    "--find-links": 1,
    "--trusted-host": 1,
    "--no-binary": 1,
    "--only-binary": 1,
    "--pre": 0,
    "--no-deps": 0,
    "--no-build-isolation": 0,
    "--upgrade": 0,
    "--no-cache-dir": 0,
    "--prefer-binary": 0,
    "--force-reinstall": 0,
    "--quiet": 0,
}
_SHORT = {"-i": "--index-url", "-f": "--find-links", "-U": "--upgrade", "-q": "--quiet"}
_WEB = re.compile(r"https?://[^/\s]+(/\S*)?")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_EXTRAS = r"(?:\s*\[\s*[A-Za-z0-9._,\s-]*\])?"
_CLAUSE = r"(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9._*+!-]*"
_REQUIREMENT = re.compile(rf"({_NAME})({_EXTRAS})\s*(?:\(?\s*({_CLAUSE}(?:\s*,\s*{_CLAUSE})*)\s*,?\s*\)?)?")
_REMOTE = r"(?:git\+(?:https|http|ssh)|https?)://(?!-)(?![^\s/]*@-)[^\s/]+/\S*"
_DIRECT = re.compile(rf"({_NAME}){_EXTRAS}\s*@\s*({_REMOTE})")
_URL = re.compile(_REMOTE)
_MARKER_WORD = re.compile(r"""\s*(?:[a-z_]+|'[^'\\]*'|"[^"\\]*"|===|==|~=|!=|<=|>=|<|>|\(|\))""")
_MARKER_NAME = re.compile(r"python_version|python_full_version|os_name|sys_platform|platform_\w+|implementation_\w+")
# No `-` at the end: apt-get removes what is so called. `[0-9]` and not `\d`: other scripts have digits too.
_APT = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+](?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~]+(?:-[A-Za-z0-9.+~]+)*)?")
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}")
MAX_ENTRY = 1000
"""Characters of an entry; the patterns below take time by its square."""


@dataclass(frozen=True)
class RuntimeSpec:
    """One environment as asked for; empty lists are fine."""

    cuda_version: str | None = None
    """The CUDA that the packages were chosen for; recorded, and compared with the driver."""
    base_image: str | None = None
    """The platform's image; recorded only, there is no image here."""
    python_version: str | None = None
    """`3.10`; the interpreter that runs Puna when null."""
    system_packages: tuple[str, ...] = ()
    """Names for apt, one each."""
    python_packages: tuple[str, ...] = ()
    """Requirements, one each, in the order written."""
    pip_options: tuple[str, ...] = ()
    """pip's own options, long form, a word each; they hold for all packages, as they do with pip."""
    run: tuple[str, ...] = ()
    """Shell lines, one after the other, after the packages; they may hold credentials and are never logged."""

    @property
    def digest(self) -> str:
        """sha256 over what is asked for, the Python version and the platform: one digest, one environment."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k != "base_image"}
        values["python_version"] = self.python_version or f"{sys.version_info.major}.{sys.version_info.minor}"
        # Without a GPU torch comes without CUDA: another environment from the same words.
        values["platform"] = f"{sysconfig.get_platform()}-{'cuda' if has_nvidia() else 'cpu'}"
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def as_yaml(self) -> str:
        """The same file again, normalised; `parse` reads it back to an equal value."""
        build = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items() if v}
        options = build.pop("pip_options", None)
        if options:
            build["python_packages"] = [*build.get("python_packages", []), shlex.join(options)]
        return str(yaml.safe_dump({"build": build}, sort_keys=False, allow_unicode=True))


def has_nvidia() -> bool:
    """True when this machine shows an NVIDIA driver."""
    return shutil.which("nvidia-smi") is not None


def default() -> RuntimeSpec:
    """The environment of an app that names none."""
    return RuntimeSpec(python_packages=DEFAULT_PACKAGES)


def find(folder: Path, name: str | None = None) -> Path | None:
    """The runtime file in a project folder, under `name` or one of its usual names."""
    for candidate in filter(None, (name, *FILE_NAMES)):
        path = folder / candidate
        # `config.yaml` is a common name for other things too: it counts when it says `build:`.
        if path.is_file() and (candidate != "config.yaml" or _says_build(path)):
            return path
    return None


def _says_build(path: Path) -> bool:
    with path.open(errors="replace") as file:
        return bool(re.search(r"(?m)^build\s*:", file.read(MAX_YAML_BYTES)))


def load(path: Path) -> RuntimeSpec:
    """Read a runtime file.

    Raises:
        RuntimeSpecError: the file is missing, is not YAML, or asks for something that is no package.
    """
    return parse(read_yaml(path, RuntimeSpecError))


def parse_text(text: str) -> RuntimeSpec:
    """A runtime from YAML text, e.g. an upload.

    Raises:
        RuntimeSpecError: as `load`.
    """
    value = parse_yaml(text, "the runtime", RuntimeSpecError)
    if not isinstance(value, dict | None):
        raise RuntimeSpecError(f"the runtime must hold keys and values, not a {type(value).__name__}")
    return parse(value or {})


def parse(values: Mapping[str, Any]) -> RuntimeSpec:
    """A runtime from plain values; null sections are empty ones.

    Raises:
        RuntimeSpecError: a misspelt key, or an entry that is no package, option or apt name.
    """
    for key in values:
        if key != "build":
            in_build = f"it belongs under `build:`: indent `{key}:`" if key in KEYS else "`build:` is the only key"
            raise RuntimeSpecError(f"unknown key `{key}`", nearest(str(key), ["build"]) or in_build)
    build = values.get("build") or {}
    if not isinstance(build, Mapping):
        raise RuntimeSpecError(f"`build` must hold keys and values, not {shown(build)}")
    for key in build:
        if key not in (*KEYS, "run_commands"):
            raise RuntimeSpecError(
                f"unknown key `build.{key}`", nearest(str(key), KEYS) or f"valid keys: {', '.join(KEYS)}"
            )
    packages, options = _python_packages(_strings(build, "python_packages"))
    return RuntimeSpec(
        cuda_version=_version(build, "cuda_version"),
        base_image=_one_line(build, "base_image"),
        python_version=_python_version(build),
        system_packages=_system_packages(_strings(build, "system_packages")),
        python_packages=tuple(packages),
        pip_options=tuple(options),
        run=tuple(line for line in (*_strings(build, "run"), *_strings(build, "run_commands")) if line.strip()),
    )


def _strings(build: Mapping[str, Any], key: str) -> list[str]:
    value = build.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise RuntimeSpecError(
            f"`build.{key}` must be a list, not {shown(value)}", f"write `{key}:` and `  - name` below"
        )
    for item in value:
        if item is not None and not isinstance(item, str):
            raise RuntimeSpecError(f"`build.{key}` must hold text, not {shown(item)}", "put quotes around it")
    return [item for item in value if item is not None]


def _one_line(build: Mapping[str, Any], key: str) -> str | None:
    value = build.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).isprintable():
        raise RuntimeSpecError(f"`build.{key}` must be one line of text, not {shown(value)}")
    return str(value).strip()


def _version(build: Mapping[str, Any], key: str) -> str | None:
    value = _one_line(build, key)
    if value is not None and not _VERSION.fullmatch(value):
        raise RuntimeSpecError(f"`build.{key}` is {value!r}", "write a version in quotes, such as `12.4.1`")
    return value


def _python_version(build: Mapping[str, Any]) -> str | None:
    value = _version(build, "python_version")
    # YAML reads an unquoted 3.10 as the number 3.1, and nobody asks for Python 3.1.
    return "3.10" if value == "3.1" else value


def _system_packages(entries: Sequence[str]) -> tuple[str, ...]:
    words = [word for entry in entries for word in _words(entry, "system_packages")]
    for word in words:
        if not _APT.fullmatch(word):
            raise RuntimeSpecError(
                f"`build.system_packages` has {word!r}, which is no apt package name",
                "names are lower-case letters, digits, `+`, `-`, `.`; commands belong under `run:`",
            )
    return tuple(dict.fromkeys(words))


def _words(entry: str, key: str) -> list[str]:
    if len(entry) > MAX_ENTRY:
        raise RuntimeSpecError(f"`build.{key}` has an entry of {len(entry)} characters", f"at most {MAX_ENTRY}")
    if any(ord(c) < 32 and c != "\t" for c in entry.strip()):
        raise RuntimeSpecError(f"`build.{key}` has an entry of several lines: {entry!r}", "write one list item a line")
    try:
        return shlex.split(entry)
    except ValueError as error:
        raise RuntimeSpecError(f"`build.{key}` has {entry!r}: {error}", "close the quotes") from None


def _python_packages(entries: Sequence[str]) -> tuple[list[str], list[str]]:
    packages: list[str] = []
    options: list[str] = []
    for entry in entries:
        words = _words(entry, "python_packages")
        whole = _requirement(entry.strip())
        if whole is not None:
            packages.append(whole)
            continue
        while words:
            _take(words, packages, options, entry)
    return list(dict.fromkeys(packages)), options


def _take(words: list[str], packages: list[str], options: list[str], entry: str) -> None:
    """Move the next package or option from `words` to where it belongs."""
    word = words.pop(0)
    if word in ("-e", "--editable") and words:
        # An editable install needs a checkout that outlives the build; the package itself is what the app imports.
        word = words.pop(0)
        if not word.startswith("git+"):
            raise _refused(entry, f"`-e {word}` is a folder of the machine that builds")
    elif word.startswith("-"):
        name, equals, value = word.partition("=")
        name = _SHORT.get(name, name)
        if name not in _OPTIONS:
            raise _refused(entry, f"option `{name}` is not allowed")
        values = [value] if equals else [words.pop(0) for _ in range(min(_OPTIONS[name], len(words)))]
        _check_option(name, values, entry)
        options.extend((name, *values))
        return
    requirement = _requirement(word)
    if requirement is None:
        raise _refused(entry, f"`{word}` is no package")
    packages.append(requirement)


def _check_option(name: str, values: list[str], entry: str) -> None:
    if len(values) != _OPTIONS[name]:
        raise _refused(entry, f"`{name}` takes {_OPTIONS[name]} value, not {len(values)}")
    for value in values:
        web = name in ("--index-url", "--extra-index-url", "--find-links")
        if not (_WEB.fullmatch(value) if web else re.fullmatch(r":?[A-Za-z0-9][A-Za-z0-9.,:_-]*:?", value)):
            raise _refused(entry, f"`{name} {value}`" + (" is no http address" if web else ""))


def _requirement(text: str) -> str | None:
    """The requirement, normalised, when `text` is exactly one; None when it is not."""
    head, semicolon, marker = text.partition(";") if "://" not in text else (text, "", "")
    if semicolon and not _is_marker(marker):
        return None
    suffix = f" ; {marker.strip()}" if semicolon else ""
    head = " ".join(head.split())  # runs of spaces would be divided among the patterns' `\s*` in every way
    if found := _DIRECT.fullmatch(head):
        return f"{found[1]} @ {found[2]}"
    if _URL.fullmatch(head):
        # The modern spelling of `#egg=name`, which newer installers insist on.
        egg = re.search(r"#(?:.*&)?egg=([A-Za-z0-9._-]+)", head)
        return f"{egg[1]} @ {re.sub(r'#egg=[A-Za-z0-9._-]+$', '', head)}" if egg else head
    if found := _REQUIREMENT.fullmatch(head):
        return re.sub(r"\s+", "", (found[1] + found[2] + (found[3] or ""))) + suffix
    return None


def _is_marker(text: str) -> bool:
    """True when `text` is an environment marker (`python_version < "3.12" and ...`) and nothing more."""
    words, position = [], 0
    text = text.rstrip()
    while found := _MARKER_WORD.match(text, position):
        words.append(found[0].strip())
        position = found.end()
    plain = [w for w in words if w[0].isalpha() and w not in ("and", "or", "in", "not")]
    return position == len(text) and bool(plain) and all(_MARKER_NAME.fullmatch(w) for w in plain)


def _refused(entry: str, why: str) -> RuntimeSpecError:
    shown = re.sub(r"://[^/@\s]+@", "://***@", entry)
    return RuntimeSpecError(
        f"`build.python_packages` has {shown!r}: {re.sub(r'://[^/@ ]+@', '://***@', why)}",
        "write `name==version`, a git+https or wheel address, or pip's index options; commands belong under `run:`",
    )

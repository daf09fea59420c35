"""Repositories whose content was made to hurt: trees that explode, links that lead out, modules from elsewhere."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_server import ENV, FILES, GitServer, git, serving
from load import load_factor
from puna.config.repository import Repository
from puna.errors import ProjectError, PunaError
from puna.home import Home
from puna.packaging.git import ALLOWED_HOSTS, fetch
from security.conftest import Tally

pytestmark = pytest.mark.process
SECRET = "s3cret-of-the-machine"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with serving(tmp_path / "repositories") as running:
        yield running


def plumb(work: Path, *arguments: str, given: bytes = b"") -> str:
    """What a git command prints that reads `given`."""
    done = subprocess.run(["git", *arguments], cwd=work, input=given, env=os.environ | ENV, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def commit(work: Path, tree: str) -> None:
    """Push a tree that no working copy could hold."""
    made = plumb(work, "commit-tree", tree, "-m", "x")
    git(work, "push", "-q", "-f", "origin", f"{made}:refs/heads/main")


def tree_of(work: Path, *entries: str) -> str:
    return plumb(work, "mktree", "--missing", given="".join(f"{entry}\n" for entry in entries).encode())


def written(work: Path, files: dict[str, str], links: dict[str, str]) -> str:
    """A tree of files and symbolic links."""
    modes = dict.fromkeys(files, "100644") | dict.fromkeys(links, "120000")
    blobs = {n: plumb(work, "hash-object", "-w", "--stdin", given=t.encode()) for n, t in (files | links).items()}
    return tree_of(work, *(f"{modes[name]} blob {blob}\t{name}" for name, blob in blobs.items()))


def fetched(server: GitServer, name: str, home: Home, folder: str = "") -> str:
    """What the error says; empty when there was none."""
    try:
        fetch(Repository(server.url(name), "main", folder), home)
    except PunaError as error:
        return f"{type(error).__name__} {error.message} {error.hint} {error.detail}"
    return ""


def nothing_left(home: Home) -> bool:
    return list(home.sources.iterdir()) == []


def test_trees_that_explode_are_refused_before_they_are_written(server: GitServer, home: Home, tally: Tally) -> None:
    work = server.repository("bomb", FILES)
    blob = plumb(work, "hash-object", "-w", "--stdin", given=b"x")
    app = plumb(work, "hash-object", "-w", "--stdin", given=FILES["app.py"].encode())
    tree = tree_of(work, *(f"100644 blob {blob}\tf{number}" for number in range(10)))
    for _ in range(10):
        tree = tree_of(work, *(f"040000 tree {tree}\td{number}" for number in range(10)))
    many = tree_of(work, f"100644 blob {app}\tapp.py", f"040000 tree {tree}\td")
    zeros = plumb(work, "hash-object", "-w", "--stdin", given=b"\0" * (64 << 20))
    large = tree_of(work, f"100644 blob {app}\tapp.py", *(f"100644 blob {zeros}\tz{number}" for number in range(40)))
    deep = tree_of(work, f"100644 blob {app}\tapp.py")
    for _ in range(1200):
        deep = tree_of(work, f"040000 tree {deep}\td")
    for name, made in {"10^11 files": many, "2.5 GiB of zeros": large, "1200 folders deep": deep}.items():
        commit(work, made)
        began = time.monotonic()
        said = fetched(server, "bomb", home)
        tally(name, refused="over" in said and nothing_left(home) and time.monotonic() - began < 30 * load_factor())


LINKS = {
    "app.py": ["{secret}", "/etc/passwd", "../../../../../../../../etc/passwd", "app.py", "loop"],
    "inferless.yaml": ["{secret}", "/etc/passwd", "/proc/self/environ"],
    "input_schema.py": ["{secret}", "/etc/passwd"],
    "inferless-runtime-config.yaml": ["{secret}", "/etc/passwd"],
    ".punaignore": ["{secret}"],
    ".gitignore": ["/etc/passwd"],
    "config.yaml": ["{secret}"],
    "data": ["/etc", "..", "../..", "{folder}"],
}


def test_no_link_is_followed_out_of_the_repository_nor_told_of(
    server: GitServer, home: Home, tally: Tally, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"build: {{{SECRET}: 1}}\n")
    work = server.repository("links", FILES)
    for name, targets in LINKS.items():
        for target in targets:
            # The ignore list says whose files belong to the project, and not which of them are read.
            hidden = "" if name == ".punaignore" else f"{name}\ndata/\n"
            link = {name: target.format(secret=secret, folder=tmp_path)}
            commit(work, written(work, FILES | {".punaignore": hidden}, link))
            said = fetched(server, "links", home)
            told = any(word in said for word in (SECRET, "root:", "PATH="))
            tally(f"{name} -> {target}", refused="is a link to" in said and not told and nothing_left(home))


def test_a_link_in_the_way_to_the_folder_or_through_another_leads_nowhere(
    server: GitServer, home: Home, tally: Tally, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "app.py").write_text(FILES["app.py"])
    work = server.repository("chain", FILES)
    (work / "apps").symlink_to(outside)
    (work / "a").symlink_to("b")
    (work / "b").symlink_to(outside / "app.py")
    server.push("chain", {})
    for folder in ("apps", "apps/x", ""):
        said = fetched(server, "chain", home, folder)
        tally(f"folder {folder!r} behind a link", refused=bool(said) and nothing_left(home))


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "../secret.yaml", "a/../../secret.yaml", "..\\x", "a\0b"]
)
def test_no_file_outside_is_named_as_the_runtime(
    name: str, server: GitServer, home: Home, tally: Tally, tmp_path: Path
) -> None:
    project = f'optional:\n  runtime_file_name: "{name}"\n'.replace("\\x", "\\\\x").replace("\0", "\\0")
    server.repository("runtime", FILES | {"inferless.yaml": project})
    said = fetched(server, "runtime", home)
    tally(f"runtime_file_name {name!r}", refused="ProjectError" in said and nothing_left(home))


def test_modules_filters_hooks_and_large_file_pointers_bring_nothing(
    server: GitServer, home: Home, tally: Tally, tmp_path: Path
) -> None:
    other = server.repository("other", FILES)
    elsewhere = git(other, "rev-parse", "HEAD").strip()
    touched = tmp_path / "touched"
    for url in (server.url("other"), f"ext::touch {touched}", f"-u./x;touch {touched}", "../other", "file:///etc"):
        label = f"modules{len(list(server.root.iterdir()))}"
        work = server.repository(label, FILES)
        modules = f'[submodule "inner"]\n\tpath = inner\n\turl = {url}\n\tupdate = !touch {touched}\n'
        (work / ".gitmodules").write_text(modules)
        git(work, "add", ".gitmodules")
        git(work, "update-index", "--add", "--cacheinfo", f"160000,{elsewhere},inner")
        git(work, "commit", "-q", "-m", "module")
        git(work, "push", "-q", "origin", "HEAD:main")
        asked, said = server.asked, fetched(server, label, home)
        paths = list(home.sources.rglob("inner/*"))
        tally(f"submodule {url}", refused=not touched.exists() and paths == [] and server.asked - asked <= 4)
        assert said == "" or "ProjectError" in said
    attributes = "*.py filter=evil diff=evil merge=evil\n*.md ident export-subst\n"
    work = server.repository("filters", FILES | {".gitattributes": attributes, "x.md": "$Id$"})
    for where in (server.root / "filters.git", work):
        for key in ("filter.evil.smudge", "filter.evil.process", "core.fsmonitor", "core.sshCommand"):
            git(where, "config", key, f"touch {touched}")
    for hook in ("post-checkout", "post-merge", "update", "reference-transaction"):
        (server.root / "filters.git" / "hooks" / hook).write_text(f"#!/bin/sh\ntouch {touched}\n")
        (server.root / "filters.git" / "hooks" / hook).chmod(0o755)
    fetched(server, "filters", home)
    tally("filters, hooks and settings of the repository's own", refused=not touched.exists())
    for pointer in ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",):
        server.repository(
            "lfs", FILES | {"weights.bin": pointer, ".lfsconfig": "[lfs]\n\turl = http://169.254.169.254/\n"}
        )
        with pytest.raises(ProjectError, match="LFS"):
            fetch(Repository(server.url("lfs"), "main"), home)
        tally("a pointer of Git LFS", refused=not any("weights" in str(path) for path in home.sources.rglob("*")))


def test_files_that_hold_whoever_reads_them_are_refused_in_time(server: GitServer, home: Home, tally: Tally) -> None:
    stars = "*a" * 20 + "*b\n"
    texts = {
        "app.py nested": {"app.py": "-" * 500_000 + "1"},
        "app.py chained": {"app.py": "a" + ".a" * 500_000},
        "app.py of 3 MiB": {"app.py": "#" * (3 << 20)},
        "schema nested": {"input_schema.py": "INPUT_SCHEMA = " + "[" * 100 + "-" * 200_000},
        "schema of 2 MiB": {"input_schema.py": "#" * (2 << 20)},
        "inferless.yaml nested": {"inferless.yaml": "[" * 60_000},
        "inferless.yaml of 1 MiB": {"inferless.yaml": "#" * (1 << 20)},
        "inferless.yaml with a tag": {"inferless.yaml": "name: !!python/object/apply:os.system [id]"},
        "inferless.yaml with a bad date": {"inferless.yaml": "name: 2024-99-99"},
        "a long ignore list": {".punaignore": "*a*\n" * 2000},
    }
    for name, files in texts.items():
        label = name.replace(" ", "-").replace(".", "")
        server.repository(label, FILES | files)
        began = time.monotonic()
        said = fetched(server, label, home)
        tally(
            name,
            refused=said[:12] in ("ProjectError", "SchemaError ") and time.monotonic() - began < 20 * load_factor(),
        )
    server.repository("stars", FILES | {".punaignore": stars * 50, "a" * 120: "x"})
    began = time.monotonic()
    assert fetched(server, "stars", home) == ""
    tally("patterns that try every way", refused=time.monotonic() - began < 20 * load_factor())

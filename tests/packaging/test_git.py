"""Projects fetched from git: what is asked, what is refused, and what arrives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from git_server import FILES, GitServer, git, serving
from puna.config.repository import Repository, address
from puna.errors import ProjectError, PunaError, UsageError
from puna.home import Home
from puna.packaging import source
from puna.packaging.git import ALLOWED_HOSTS, Credential, fetch, head

APP = FILES["app.py"]


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/x",
        "-uhttps://example.com/a",
        "--upload-pack=touch /tmp/x",
        "file:///etc",
        "/etc",
        "../other",
        "git://github.com/acme/chat",
        "ftp://github.com/acme/chat",
        "https://github.com/../../etc",
        "https://-oProxyCommand=touch/acme/chat",
        "ssh://-oProxyCommand=touch/acme/chat",
        "-oProxyCommand=x@host:path",
        "git@-oProxyCommand=touch:path",
        "https://github.com/acme/chat?x=1",
        "https://github.com/acme/chat#x",
        "https://github.com/acme/chat\nhttps://other",
        "https://github.com:port/acme",
        "https://github.com",
        "https://user@github.com/acme/chat",
        "https://user:word@github.com/acme/chat",
        "",
    ],
)
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(UsageError) as error:
        Repository(url)
    assert "word" not in str(error.value)


def test_a_url_means_the_same_however_it_is_written() -> None:
    urls = ["https://github.com/Acme/chat", "https://github.com/acme/chat.git", "git@github.com:acme/chat.git"]
    urls += ["ssh://git@GitHub.com/acme/chat"]
    assert {address(url).same for url in urls} == {"github.com/acme/chat"}
    assert address("ssh://git@host:2222/a/b").port == 2222


@pytest.mark.parametrize("branch", ["-x", "a..b", "a b", "a~1", "a:b", "a@{0}", "x.lock", "/", "a/", "a\n"])
def test_branches_that_are_none_are_refused(branch: str) -> None:
    with pytest.raises(UsageError):
        Repository("https://github.com/acme/chat", branch)


@pytest.mark.parametrize("folder", ["..", "a/../..", "/etc", ".git", "a/.git/hooks", "a//b", "a\0", "."])
def test_folders_outside_are_refused(folder: str) -> None:
    with pytest.raises(UsageError):
        Repository("https://github.com/acme/chat", "main", folder)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "0.0.0.0", "192.168.1.1"])
def test_private_addresses_are_not_asked(host: str) -> None:
    with pytest.raises(UsageError, match="private") as error:
        head(Repository(f"https://{host}/acme/chat"))
    assert f"{ALLOWED_HOSTS}={host}" in error.value.hint


def test_http_is_for_hosts_that_are_allowed() -> None:
    with pytest.raises(UsageError, match="http"):
        head(Repository("http://github.com/acme/chat"))


def test_a_secret_without_a_credential_says_so() -> None:
    assert Credential.of({"GIT_TOKEN": "t"}).token == "t"
    with pytest.raises(UsageError, match="GIT_TOKEN"):
        Credential.of({"OTHER": "x"})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with serving(tmp_path / "repositories") as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def _left(home: Home) -> list[str]:
    """Drafts and clones that should be gone; the lock stays."""
    return [path.name for path in home.sources.iterdir() if path.name.startswith(".") and path.name != source.LOCK]


@pytest.mark.process
def test_a_branch_is_fetched_as_a_snapshot_with_its_commit(server: GitServer, home: Home) -> None:
    server.repository("chat", FILES)
    newer = server.push("chat", {"app.py": APP + "# newer\n"}, branch="next")
    first = fetch(Repository(server.url("chat")), home)
    second = fetch(Repository(server.url("chat"), "next"), home)
    assert sorted(p.name for p in (first.source.path / "files").iterdir()) == ["app.py", "input_schema.py"]
    assert second.commit == newer == head(Repository(server.url("chat"), "next")) != first.commit
    assert first.source.digest != second.source.digest
    assert _left(home) == []


@pytest.mark.process
def test_a_folder_of_a_repository_is_a_project(server: GitServer, home: Home) -> None:
    server.repository("many", {f"apps/chat/{name}": text for name, text in FILES.items()} | {"README": "x"})
    fetched = fetch(Repository(server.url("many"), "main", "apps/chat"), home)
    assert sorted(p.name for p in (fetched.source.path / "files").iterdir()) == ["app.py", "input_schema.py"]
    with pytest.raises(ProjectError, match=r"has no app\.py"):
        fetch(Repository(server.url("many")), home)
    with pytest.raises(ProjectError, match="no folder"):
        fetch(Repository(server.url("many"), "main", "apps/other"), home)
    assert _left(home) == []


@pytest.mark.process
def test_what_is_not_there_says_what(server: GitServer, home: Home) -> None:
    server.repository("chat", FILES)
    with pytest.raises(ProjectError, match="no branch 'other'"):
        fetch(Repository(server.url("chat"), "other"), home)
    with pytest.raises(ProjectError, match="no branch 'other'"):
        head(Repository(server.url("chat"), "other"))
    with pytest.raises(ProjectError, match="private, or not there"):
        fetch(Repository(server.url("nothing")), home)


@pytest.mark.process
def test_a_private_repository_needs_its_token_which_nobody_sees(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    with serving(tmp_path / "private", token="s3cret-token") as server:
        server.repository("chat", FILES)
        assert fetch(Repository(server.url("chat")), home, Credential(token="s3cret-token")).commit
        for wrong in (None, Credential(token="wrong-token")):
            with pytest.raises(ProjectError, match="private, or not there") as error:
                fetch(Repository(server.url("chat")), home, wrong)
            assert "wrong-token" not in str(error.value) + error.value.detail


@pytest.mark.process
def test_redirects_are_not_followed(server: GitServer, home: Home, tmp_path: Path) -> None:
    server.repository("chat", FILES)
    with serving(tmp_path / "other") as other:
        other.redirect_to = server.url("chat").removesuffix("/chat.git")
        asked = server.asked
        with pytest.raises(PunaError):
            fetch(Repository(other.url("chat")), home)
        assert server.asked == asked and other.asked > 0


@pytest.mark.process
def test_links_out_of_the_repository_submodules_and_hooks_bring_nothing(
    server: GitServer, home: Home, tmp_path: Path
) -> None:
    work = server.repository("evil", FILES)
    (work / "outside").symlink_to("/etc")
    server.push("evil", {})
    with pytest.raises(ProjectError, match="link to"):
        fetch(Repository(server.url("evil")), home)
    (work / "outside").unlink()
    touched = tmp_path / "touched"
    server.push("evil", {".gitattributes": "*.py filter=evil\n", ".gitmodules": _submodule(server)})
    git(server.root / "evil.git", "config", "filter.evil.smudge", f"touch {touched}")
    asked = server.asked
    fetched = fetch(Repository(server.url("evil")), home)
    assert server.asked > asked and not touched.exists()
    assert not (fetched.source.path / "files" / "inner").exists()


def _submodule(server: GitServer) -> str:
    return f'[submodule "inner"]\n\tpath = inner\n\turl = {server.url("chat")}\n'


@pytest.mark.process
def test_lfs_pointers_are_not_taken_for_files(server: GitServer, home: Home) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    server.repository("lfs", FILES | {"weights.bin": pointer})
    with pytest.raises(ProjectError, match=r"weights\.bin is kept in Git LFS"):
        fetch(Repository(server.url("lfs")), home)

"""Repositories that somebody made, or named, to hurt: nothing outside is asked, read, run or filled."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from git_server import FILES, GitServer, serving
from load import load_factor
from puna.config.repository import Repository, address
from puna.errors import ProjectError, PunaError, UsageError
from puna.home import Home
from puna.packaging import git as fetching
from puna.packaging.git import ALLOWED_HOSTS, Credential, fetch, head
from puna.process.tree import descendants
from security.conftest import Tally

GOOD = "https://github.com/acme/chat"
TOUCH = "touch${IFS}/tmp/puna-was-here"
URLS = [
    *("ext::sh -c touch% /tmp/x", f"ext::{TOUCH}", "fd::17", "transport::x", "file:///etc", "file://localhost/etc"),
    *("-uhttps://example.com/a", "--upload-pack=touch /tmp/x", f"--upload-pack={TOUCH}", "-c", "--", "-o x"),
    *("/etc", "../other", "./x", "~/.ssh", "etc", "C:\\x", "\\\\host\\share", "git://github.com/acme/chat"),
    *("ftp://github.com/acme/chat", "ftps://github.com/a", "gopher://127.0.0.1:6379/_x", "dict://127.0.0.1/x"),
    *("javascript:alert(1)", "data:text/plain,x", "git+https://github.com/a/b", "rsync://h/a", "svn://h/a", "ssh:h"),
    *("https://github.com/../../etc", "https://github.com/a/..", "https://github.com/%00", "https://github.com/a b"),
    *("https://-oProxyCommand=touch/acme/chat", "ssh://-oProxyCommand=touch/acme/chat", "ssh://git@-x/a"),
    *("-oProxyCommand=x@host:path", "git@-oProxyCommand=touch:path", "-l@host:path", "git@host:-x;touch", "git@h:$(x)"),
    *("https://github.com/acme/chat?x=1", "https://github.com/acme/chat#x", "https://github.com/a\nhttps://b/c"),
    *("https://github.com:port/acme", "https://github.com:99999/a", "https://github.com:-1/a", "https://github.com"),
    *("https://", "https:///a", "https:a", "", " ", "\0", "https://git\0hub.com/a", "https://github.com/a\r\nX: y"),
    *("https://user@github.com/a/b", "https://user:word@github.com/a/b", "https://:word@github.com/a/b"),
    *("ssh://git:word@github.com/a", "https://a@b@github.com/c", "https://github.com\\@evil.example/a"),
    *("https://github.com;touch/a", "https://github.com/a;touch x", "https://github.com/$(touch x)", "https://h/`x`"),
    *(
        "https://[::1]/a",
        "https://[::ffff:127.0.0.1]/a",
        "https://[fe80::1%25eth0]/a",
        "https://h*st/a",
        "https://h_st/a",
    ),
    *("https://ex\u0430mple.com/a", "https://\uff11\uff12\uff17.0.0.1/a", "HTTPS//x", "https://a/|x", "https://a/&x"),
]
BRANCHES = [
    *("-x", "--upload-pack=touch", f"--upload-pack={TOUCH}", "-c core.sshCommand=touch", "a;touch x", "a$(touch x)"),
    *("a`touch x`", "a|x", "a&x", "a>x", "a b", "a\nb", "a\0b", "a..b", "a~1", "a^1", "a:b", "a@{0}", "x.lock"),
    *(
        "/",
        "a/",
        "a//b",
        ".",
        "a.",
        "*",
        "a?b",
        "[a]",
        "a\\b",
        "refs/heads/main:refs/puna/other",
        "\u202emain",
        "a" * 201,
    ),
    *("'a'", '"a"', "${IFS}", "!x", "(x)", "{a,b}", "main\r", "HEAD^{/x}"),
]
FOLDERS = [
    "..",
    "a/../..",
    "/etc",
    ".git",
    "a/.git/hooks",
    "a//b",
    "a\0",
    ".",
    "./..",
    "a/.",
    ":(top)x",
    ":/",
    "*",
    "$(x)",
]
FOLDERS += ["a;b", "a\nb", "~", "~root", "\\etc", "a/\\..\\x", "-x/../..", "%2e%2e"]
PRIVATE = [
    *("127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "0.0.0.0", "192.168.1.1", "172.16.0.1", "100.64.0.1"),
    *("2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1", "0", "0x0", "1"),
    *("2852039166", "0xa9fea9fe", "3232235777", "255.255.255.255", "224.0.0.1", "240.0.0.1", "198.18.0.1", "192.0.2.1"),
]
RESOLVED = [
    *(
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "172.31.0.1",
        "192.168.0.1",
        "100.100.100.200",
        "0.0.0.0",
        "224.0.0.1",
    ),
    *("::1", "::", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "::7f00:1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::", "2001:0:7f00:1::1"),
    *("fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "5f00::1", "100::1"),
]


def refused(call: Any, *arguments: Any) -> bool:
    try:
        call(*arguments)
    except UsageError:
        return True
    return False


def test_what_is_no_repository_is_refused_before_anything_runs(tally: Tally) -> None:
    for url in URLS:
        tally(f"url {url!r}", refused=refused(Repository, url))
    for branch in BRANCHES:
        tally(f"branch {branch!r}", refused=refused(Repository, GOOD, branch))
    for folder in FOLDERS:
        tally(f"folder {folder!r}", refused=refused(Repository, GOOD, "main", folder))
    Repository(GOOD, "feature/x-1", "apps/chat one")  # and people's own names are not


def test_no_error_shows_a_word_of_credentials_in_a_url(tally: Tally) -> None:
    for url in ("https://u:w0rd@h/a", "https://u:w0r/d@h/a", "https://u:p@w0rd@h/a", "ssh://u:w0rd@h/a"):
        with pytest.raises(UsageError) as error:
            Repository(url)
        tally(f"password of {url}", refused="w0rd" not in f"{error.value} {error.value.hint}")


@pytest.mark.parametrize("scheme", ["https", "ssh"])
def test_no_private_address_is_asked_however_it_is_written(scheme: str, tally: Tally) -> None:
    for host in PRIVATE:
        for ask in (head, lambda repository: fetch(repository, Home(Path("/nonexistent/home")))):
            try:
                ask(Repository(f"{scheme}://{host}/acme/chat"))
                is_refused = False
            except UsageError as error:
                is_refused = "private address" in str(error)
            except (ProjectError, OSError):
                is_refused = False
            tally(f"{scheme}://{host}", refused=is_refused)


def test_no_name_that_means_a_private_address_is_asked(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    for resolved in RESOLVED:
        for others in ([], ["140.82.121.4"], ["2606:4700::1"]):
            answers = [(0, 0, 0, "", (ip, 443)) for ip in (*others, resolved)]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=answers, **__: found)
            tally(f"a name for {others} {resolved}", refused=refused(head, Repository("https://evil.example/a/b")))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("64:ff9b::8c52:7904", 443))])
    fetching._resolved(address(GOOD))  # GitHub through NAT64 is GitHub


def test_http_is_asked_of_nobody_who_was_not_allowed(tally: Tally) -> None:
    for host in ("github.com", "127.0.0.1", "evil.example"):
        tally(f"http://{host}", refused=refused(head, Repository(f"http://{host}/a/b")))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1,rebind.example")
    with serving(tmp_path / "repositories") as running:
        yield running


def left(home: Home) -> list[str]:
    """Drafts that stayed behind, and sources that were made."""
    return [path.name for path in home.sources.iterdir()]


@pytest.mark.process
def test_a_name_that_changes_its_mind_is_asked_where_it_was_looked_up(
    server: GitServer, home: Home, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repository("chat", FILES)
    asked: list[str] = []

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", ("127.0.0.1" if len(asked) == 1 else "169.254.169.254", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    # No resolver knows this name: git reaches the server only at the address that it is given.
    url = server.url("chat").replace("127.0.0.1", "rebind.example")
    assert fetch(Repository(url), home).commit
    tally("the second answer of a resolver", refused=asked == ["rebind.example"])


class Evil:
    """An HTTP server that answers everything as `answer` does; `asked` are the paths."""

    def __init__(self, answer: Any) -> None:
        self.asked: list[str] = []
        evil = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                evil.asked.append(self.path)
                try:
                    answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def send(handler: Any, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.process
def test_nobody_is_sent_elsewhere(server: GitServer, home: Home, tally: Tally) -> None:
    server.repository("chat", FILES)
    target = server.url("chat")
    places = [(status, target + "/info/refs?service=git-upload-pack") for status in (301, 302, 303, 307, 308)]
    for status, where in [*places, (302, "file:///etc/passwd"), (302, "ext::touch x")]:
        evil = Evil(lambda handler, s=status, w=where: send(handler, b"", s, location=w))
        asked = server.asked
        with pytest.raises(PunaError):
            fetch(Repository(f"{evil.url}/chat.git"), home)
        tally(f"{status} to {where}", refused=server.asked == asked and left(home) == [])
        evil.close()

    def dumb(handler: Any) -> None:  # the old protocol lets a server name other places for its objects
        if handler.path.startswith("/chat.git/info/refs"):
            send(handler, b"%s\trefs/heads/main\n" % (b"a" * 40), content_type="text/plain")
        elif handler.path.endswith("/HEAD"):
            send(handler, b"ref: refs/heads/main\n")
        elif "alternates" in handler.path:
            send(handler, target.encode() + b"/objects\n")
        else:
            send(handler, b"", 404)

    evil, asked = Evil(dumb), server.asked
    with pytest.raises(PunaError):
        fetch(Repository(f"{evil.url}/chat.git", "main"), home)
    tally("http-alternates", refused=server.asked == asked and bool(evil.asked))
    evil.close()


@pytest.mark.process
def test_a_server_that_never_ends_holds_nobody_and_fills_nothing(
    home: Home, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    monkeypatch.setattr(fetching, "TIMEOUT_S", 2.0)
    head_of = b"001e# service=git-upload-pack\n0000"

    def start(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "application/x-git-upload-pack-advertisement")
        handler.end_headers()
        handler.wfile.write(head_of)

    def drip(handler: Any) -> None:
        start(handler)
        while True:
            handler.wfile.write(b"0")
            time.sleep(0.05)

    def refs(handler: Any) -> None:
        start(handler)
        for number in range(10**9):
            line = b"%040x refs/heads/%s%d\n" % (number, b"x" * 900, number)
            handler.wfile.write(b"%04x%s" % (len(line) + 4, line))

    for name, answer in {"drips": drip, "endless refs": refs}.items():
        evil, before, began = Evil(answer), set(descendants()), time.monotonic()
        with pytest.raises(ProjectError):
            fetch(Repository(f"{evil.url}/chat.git"), home, Credential(token="t0ken-in-flight"))
        took = time.monotonic() - began
        evil.close()
        time.sleep(0.1)
        alive = set(descendants()) - before
        tally(f"a server that {name}", refused=took < 15 * load_factor() and not alive and left(home) == [])


@pytest.mark.process
def test_a_token_and_a_key_are_nowhere_to_be_read_while_git_runs(
    home: Home, tally: Tally, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ALLOWED_HOSTS, "127.0.0.1")
    monkeypatch.setattr(fetching, "TIMEOUT_S", 3.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    seen: list[bytes] = []

    def look(handler: Any) -> None:
        for pid, _ in descendants():
            seen.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        seen.extend(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        send(handler, b"", 401, www_authenticate="Basic")

    evil = Evil(look)
    with pytest.raises(ProjectError) as error:
        fetch(Repository(f"{evil.url}/chat.git"), home, Credential(token="t0ken-in-flight"))
    evil.close()
    everything = b"\n".join(seen) + f"{error.value} {error.value.hint} {error.value.detail}".encode()
    assert b"ls-remote" in everything or b"fetch" in everything
    for form in (b"t0ken-in-flight", b"eC1hY2Nlc3MtdG9rZW46dDBrZW4"):  # and its base64
        tally(f"{form!r} in command lines, files or errors", refused=form not in everything)


@pytest.mark.process
def test_an_ssh_key_is_read_by_ssh_and_never_lies_on_a_disk(tally: Tally, tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "id")], check=True)
    text = (tmp_path / "id").read_text()
    with fetching._in_memory(Credential(ssh_key=text)) as path:
        told = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
        assert told.split()[1] == (tmp_path / "id.pub").read_text().split()[1]
        tally("the file of a private key", refused=os.readlink(path).startswith("/memfd:"))
        tally("its mode", refused=os.stat(path).st_mode & 0o077 == 0)
    tally("the key after the fetch", refused=not os.path.exists(path))

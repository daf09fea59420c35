"""A git server over HTTP for tests: `git http-backend` behind a few lines of http.server, with a token or without."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENV = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_CONFIG_GLOBAL": os.devnull}
ENV |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com", "GIT_CONFIG_NOSYSTEM": "1"}

APP = "class InferlessPythonModel:\n    def infer(self, inputs):\n        return {'out': inputs['prompt']}\n"
SCHEMA = 'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}\n'
FILES = {"app.py": APP, "input_schema.py": SCHEMA}


def git(folder: Path, *arguments: str) -> str:
    """What a git command in `folder` prints."""
    env = os.environ | ENV
    return subprocess.run(["git", *arguments], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


class GitServer:
    """Serves the bare repositories in a folder; `redirect_to` sends everybody elsewhere."""

    def __init__(self, root: Path, token: str = "") -> None:
        self.root, self.token, self.redirect_to, self.asked = root, token, "", 0
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def url(self, name: str) -> str:
        """Where a repository is fetched from."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/{name}.git"

    def repository(self, name: str, files: dict[str, str], branch: str = "main") -> Path:
        """A working copy whose pushes arrive here."""
        work = self.root / f"{name}-work"
        made = _repository(name, tuple(files.items()), branch)
        for folder in (work.name, f"{name}.git"):
            shutil.copytree(made / folder, self.root / folder)
        return work

    def push(self, name: str, files: dict[str, str], branch: str = "main") -> str:
        """Commit these files on a branch and push it; returns the commit."""
        return _push(self.root, name, files, branch)

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@functools.cache
def _repository(name: str, files: tuple[tuple[str, str], ...], branch: str) -> Path:
    """A folder with a working copy and the bare repository of that name beside it, to be copied: git takes a while."""
    root = Path(tempfile.mkdtemp(prefix="puna-git-server-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    git(root, "init", "-q", "--bare", "--template=", "-b", branch, f"{name}.git")
    (root / f"{name}.git" / "hooks").mkdir()
    git(root, "init", "-q", "--template=", "-b", branch, f"{name}-work")
    git(root / f"{name}-work", "remote", "add", "origin", f"../{name}.git")
    _push(root, name, dict(files), branch)
    return root


def _push(root: Path, name: str, files: dict[str, str], branch: str) -> str:
    work = root / f"{name}-work"
    for path, text in files.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
    git(work, "add", "-A")
    git(work, "commit", "-q", "--allow-empty", "-m", "a change")
    git(work, "push", "-q", "origin", f"HEAD:{branch}")
    return (root / f"{name}.git" / "refs" / "heads" / branch).read_text().strip()


@contextlib.contextmanager
def serving(root: Path, token: str = "") -> Iterator[GitServer]:
    """A server over the folder `root`, which is made, until the block ends."""
    root.mkdir(exist_ok=True)
    server = GitServer(root, token)
    try:
        yield server
    finally:
        server.close()


def _handler(server: GitServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("content-length") or 0)))

        def _answer(self, body: bytes) -> None:
            server.asked += 1
            if server.redirect_to:
                self.send_response(302)
                self.send_header("location", server.redirect_to + self.path)
                self.end_headers()
                return
            wanted = "Basic " + base64.b64encode(f"x-access-token:{server.token}".encode()).decode()
            if server.token and self.headers.get("authorization") != wanted:
                self.send_response(401)
                self.send_header("www-authenticate", 'Basic realm="git"')
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            env = os.environ | {
                "GIT_PROJECT_ROOT": str(server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("content-type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
                "REMOTE_ADDR": "127.0.0.1",
            }
            done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = [line.split(": ", 1) for line in head.decode().split("\r\n")]
            status = next((value for name, value in headers if name == "Status"), "200 OK")
            self.send_response(int(status.split()[0]))
            for name, value in headers:
                if name != "Status":
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler

"""A small hub over real HTTP: the routes that huggingface_hub and transformers use to push and to pull a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from publish import xet_wire

TOKEN = "hf_good"
LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    data: bytes
    sha256: str | None = None
    """Set when it came by LFS or xet."""

    @property
    def etag(self) -> str:
        return self.sha256 or hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """As a tree lists it."""
        blob = hashlib.sha1(self.data).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": blob}
        if self.sha256:
            found["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}
        return found


@dataclass
class Repo:
    """A repository: commits by id, newest last, each a whole tree."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, File], message: str) -> str:
        tree = "".join(f"{path}:{file.etag}" for path, file in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{message}{tree}".encode()).hexdigest()
        self.commits[sha] = files
        self.messages.append(message)
        return sha

    @property
    def head(self) -> str:
        return list(self.commits)[-1]


@dataclass
class Reply:
    """What a route answers."""

    status: int
    value: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None

    @property
    def body(self) -> bytes:
        return self.raw if self.raw is not None else json.dumps(self.value).encode()


@dataclass(frozen=True)
class Request:
    """One request, its body read."""

    match: re.Match[str]
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    origin: str

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def signed(self) -> bool:
        return bool(self.headers.get("Authorization") == f"Bearer {TOKEN}")


class Hub:
    """Repositories, blobs and routes; `with Hub() as hub:` serves it on a free port."""

    def __init__(self, *, xet: bool = True) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.xorbs: dict[str, list[bytes]] = {}
        self.xet = xet
        self.seen: list[str] = []
        """Method and path of each request."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # ------------------------------------------------------------ accounts and repositories

    def whoami(self, request: Request) -> Reply:
        if not request.signed:
            return Reply(401, {"error": "Invalid credentials"})
        return Reply(200, {"type": "user", "name": "acme", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, request: Request) -> Reply:
        asked = request.json()
        repo_id = f"{asked.get('organization') or 'acme'}/{asked['name']}"
        url = f"{request.origin}/{repo_id}"
        if repo_id in self.repos:
            return Reply(409, {"error": "You already created this model repo", "url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.repos[repo_id] = Repo(private=private)
        self.repos[repo_id].commit({}, "initial commit")
        return Reply(200, {"url": url, "name": repo_id, "id": repo_id})

    # ------------------------------------------------------------ push

    def preupload(self, request: Request) -> Reply:
        large = (".safetensors", ".bin")
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular", "shouldIgnore": False}
            for f in request.json()["files"]
        ]
        return Reply(200, {"files": files})

    def lfs_batch(self, request: Request) -> Reply:
        objects = []
        for asked in request.json()["objects"]:
            actions = {
                "upload": {"href": f"{request.origin}/lfs/{asked['oid']}", "header": {}},
                "verify": {"href": f"{request.origin}/lfs/verify", "header": {}},
            }
            objects.append({"oid": asked["oid"], "size": asked["size"], "actions": actions})
        return Reply(200, {"transfer": "basic", "objects": objects}, LFS_JSON)

    def lfs_put(self, request: Request) -> Reply:
        if hashlib.sha256(request.body).hexdigest() != request.match["oid"]:
            return Reply(400, {"error": "the bytes are not those of that oid"})
        self.blobs[request.match["oid"]] = request.body
        return Reply(200, {})

    def lfs_verify(self, request: Request) -> Reply:
        asked = request.json()
        return Reply(200 if len(self.blobs.get(asked["oid"], b"")) == asked["size"] else 404, {})

    def xet_token(self, request: Request) -> Reply:
        if not self.xet:
            return Reply(404, {"error": "Not Found"})
        expires = int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": request.origin, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(expires)}
        return Reply(200, {"accessToken": "t", "exp": expires, "casUrl": request.origin}, headers)

    def xorb(self, request: Request) -> Reply:
        self.xorbs[request.match["hash"]] = xet_wire.read_xorb(request.body)
        return Reply(200, {"was_inserted": True})

    def shard(self, request: Request) -> Reply:
        for terms in xet_wire.read_shard(request.body):
            data = xet_wire.rebuild(terms, self.xorbs)
            self.blobs[hashlib.sha256(data).hexdigest()] = data
        return Reply(200, {"result": 1})

    def commit(self, request: Request) -> Reply:
        repo = self.repos[request.match["repo"]]
        files, message = dict(repo.commits[repo.head]), ""
        for line in request.body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                message = value["summary"]
            elif part["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif part["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return Reply(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = File(self.blobs[value["oid"]], value["oid"])
            elif part["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, message)
        return Reply(200, {"commitUrl": f"{request.origin}/{request.match['repo']}/commit/{sha}", "commitOid": sha})

    # ------------------------------------------------------------ pull

    def _tree(self, request: Request) -> tuple[str, dict[str, File]] | Reply:
        repo = self.repos.get(request.match["repo"])
        if repo is None or (repo.private and not request.signed):
            return Reply(401 if not request.signed else 404, {"error": "Repository not found"}, _code("RepoNotFound"))
        revision = urllib.parse.unquote(request.match.groupdict().get("rev") or "main")
        sha = repo.head if revision == "main" else revision
        if sha not in repo.commits:
            return Reply(404, {"error": "Invalid rev id"}, _code("RevisionNotFound"))
        return sha, repo.commits[sha]

    def info(self, request: Request) -> Reply:
        found = self._tree(request)
        if isinstance(found, Reply):
            return found
        repo_id = request.match["repo"]
        repo = self.repos[repo_id]
        siblings = [{"rfilename": path} for path in found[1]]
        body = {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": found[0], "siblings": siblings, "tags": []}
        body |= {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0}
        return Reply(200, body | {"lastModified": DATE, "createdAt": DATE})

    def auth_check(self, request: Request) -> Reply:
        """What is said of a gated model is public; its files are not."""
        found = self._tree(request)
        return found if isinstance(found, Reply) else self._gate(request) or Reply(200, {})

    def _gate(self, request: Request) -> Reply | None:
        repo_id = request.match["repo"]
        if self.repos[repo_id].gated and not request.signed:
            return Reply(403, {"error": f"Access to {repo_id} is restricted"}, _code("GatedRepo"))
        return None

    def tree(self, request: Request) -> Reply:
        found = self._tree(request)
        if isinstance(found, Reply):
            return found
        under = urllib.parse.unquote(request.match["path"] or "")
        entries = [file.entry(path) for path, file in found[1].items() if not under or path.startswith(under + "/")]
        if under and not entries:
            return Reply(404, {"error": "Entry not found"}, _code("EntryNotFound"))
        return Reply(200, entries)

    def resolve(self, request: Request) -> Reply:
        found = self._tree(request)
        if isinstance(found, Reply):
            return found
        refused = self._gate(request)
        if refused is not None:
            return refused
        sha, files = found
        file = files.get(urllib.parse.unquote(request.match["path"]))
        if file is None:
            return Reply(404, {"error": "Entry not found"}, _code("EntryNotFound") | {"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if wanted is None:
            return Reply(200, headers=headers, raw=file.data)
        start, end = int(wanted[1]), min(int(wanted[2] or len(file.data)), len(file.data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(file.data)}"
        return Reply(206, headers=headers, raw=file.data[start : end + 1])

    # ------------------------------------------------------------ HTTP

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Reply:
        """Find the route; writing asks for the token."""
        parts = urllib.parse.urlsplit(target)
        self.seen.append(f"{method} {parts.path}")
        for methods, pattern, handler, is_write in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match is None or method not in methods.split():
                continue
            request = Request(match, urllib.parse.parse_qs(parts.query), headers, body, f"http://{headers['Host']}")
            if is_write and not request.signed:
                return Reply(401, {"error": "Invalid username or password."})
            return handler(self, request)
        return Reply(404, {"error": f"no route for {method} {parts.path}"})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                """Requests are kept in `seen`."""

            def read(self) -> bytes:
                if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def respond(self) -> None:
                reply = hub.answer(self.command, self.path, self.headers, self.read())
                self.send_response(reply.status)
                for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

        return Handler


def _code(code: str) -> dict[str, str]:
    return {"X-Error-Code": code, "X-Error-Message": code}


REPO, REV = r"(?P<repo>[^/]+/[^/]+)", r"(?P<rev>[^/]+)"
# Methods, path, handler, whether it writes.
ROUTES: list[tuple[str, str, Callable[[Hub, Request], Reply], bool]] = [
    ("GET", r"/api/whoami-v2", Hub.whoami, False),
    ("POST", r"/api/repos/create", Hub.create, True),
    ("POST", r"/api/validate-yaml", lambda hub, request: Reply(200, {"warnings": [], "errors": []}), False),
    ("POST", rf"/api/models/{REPO}/preupload/{REV}", Hub.preupload, True),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Hub.lfs_batch, True),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Hub.lfs_put, False),
    ("POST", r"/lfs/verify", Hub.lfs_verify, False),
    ("GET", rf"/api/models/{REPO}/xet-write-token/{REV}", Hub.xet_token, True),
    ("POST", r"/v1/xorbs/default/(?P<hash>[0-9a-f]{64})", Hub.xorb, False),
    ("POST", r"(/v1)?/shards", Hub.shard, False),
    ("POST", rf"/api/models/{REPO}/commit/{REV}", Hub.commit, True),
    ("GET", rf"/api/models/{REPO}/auth-check", Hub.auth_check, False),
    ("GET", rf"/api/models/{REPO}(/revision/{REV})?", Hub.info, False),
    ("GET", rf"/api/models/{REPO}/tree/{REV}/?(?P<path>.*)", Hub.tree, False),
    ("GET HEAD", rf"/{REPO}/resolve/{REV}/(?P<path>.+)", Hub.resolve, False),
]

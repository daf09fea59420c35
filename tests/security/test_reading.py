"""What may be read: nothing without a key, nothing of another owner's, and a secret by nobody, wherever it is kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.control.api.routes.console import LINK_LIVES_S, Links
from puna.control.resources.secrets import Secrets
from puna.errors import MachineError
from puna.home import Home
from puna.process.tree import descendants
from security.conftest import Tally
from security.fort import SECRET, YOURS, Fort, standing
from security.routes import API, examples, filled, mutating, walk

pytestmark = pytest.mark.process

OPEN = {f"{API}/health", "/api/docs", "/api/openapi.json", "/", "/console/{digest}/{name:path}"}
"""Read without a key: what the program is, and its page."""
INTERNAL = "/internal/"
ADMIN = {f"{API}/keys", f"{API}/secrets"}


def names(fort: Fort) -> dict[str, dict[str, str]]:
    """What stands for the names in the paths that are read: the other owner's, where there is one."""
    return {
        "/endpoints/": {"name": "yours", "number": str(fort.delivery), "a": "1", "b": "2"},
        "/builds/": {"build_id": fort.build},
        "/runtimes/": {"name": "rt", "version": "1", "a": "1", "b": "1"},
        "/volumes/": {"name": "vault", "path": "file"},
        "/runs/": {"name": "run-1"},
        "/sources/": {"digest": fort.source},
        "/models/": {"owner": "acme", "model": "m", "version": "1"},
    }


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    with standing(tmp_path_factory.mktemp("f")) as made:
        yield made


def reads(fort: Fort) -> Iterator[str]:
    for method, path in walk(fort.app):
        if method == "GET" and path not in OPEN and not path.startswith(INTERNAL):
            known = next((found for part, found in names(fort).items() if part in path), {})
            yield filled(path, known)


def told(fort: Fort, path: str, key: str) -> tuple[int, str]:
    """Status and the beginning of the reply; some replies have no end."""
    headers = fort.bearer(key) if key else {}
    text = ""
    with fort.call.stream("GET", path, headers=headers) as reply:
        for piece in reply.iter_text():
            text += piece
            if "stream" in path or "follow" in path:
                break
    return reply.status_code, text


WRONG = ["", "infer", "infer of mine", "expired", "revoked", "never made", "another's secret", "cut short", "its hash"]


def test_nobody_reads_anything_without_a_right_key(fort: Fort, tally: Tally) -> None:
    for path in reads(fort):
        for key in WRONG:
            status, text = told(fort, path, key)
            tally(f"GET {path} {key}: {status}", refused=status in (401, 403) and YOURS not in text)
    for path in ADMIN:
        for key in ("deploy", "deploy of mine", "admin of mine"):
            tally(f"GET {path} {key}", refused=told(fort, path, key)[0] == 403)


def test_no_key_for_other_endpoints_reads_of_them(fort: Fort, tally: Tally) -> None:
    extra = ["endpoints/yours/logs?follow=1", "endpoints/yours/logs?replica=yours-1-0", "usage?endpoint=yours"]
    extra += [
        "endpoints/mine/logs?replica=yours-1-0",
        "endpoints/mine/logs?replica=../yours/yours-1-0",
        "builds?limit=1000",
    ]
    extra += [f"builds/{fort.runtime_build}", f"builds/{fort.runtime_build}/log", f"builds/{fort.build}/log?follow=1"]
    extra += ["usage?by=endpoint,key", "usage.csv", "events/stream?endpoint=yours", "runtimes/rt?version=1"]
    for path in [*reads(fort), *(f"{API}/{path}" for path in extra)]:
        for key in ("deploy of mine", "admin of mine", "deploy of nothing"):
            status, text = told(fort, path, key)
            # In what such a key may read at all, the other owner's name does not occur.
            builds = [] if path.endswith("/runtimes") else [fort.runtime_build]  # all may know which there are
            leaks = YOURS in text or (status < 300 and any(word in text for word in ["yours", *builds]))
            tally(f"GET {path} {key}: {status}", refused=not leaks)


def test_what_is_not_said_of_others_is_said_of_ones_own_and_to_who_may_know(fort: Fort) -> None:
    """The test above sees names where there are any: here they are."""

    def read(path: str, key: str) -> list[str]:
        return re.findall(r'"endpoint":"(\w+)"', fort.call.get(f"{API}/{path}", headers=fort.bearer(key)).text)

    for path in ("machine", "models"):
        assert sorted(set(read(path, "deploy"))) == ["mine", "yours"]
        assert set(read(path, "deploy of mine")) == {"mine"} and read(path, "deploy of nothing") == []
    gpus = fort.call.get(f"{API}/machine", headers=fort.bearer("deploy of mine")).json()["gpus"]
    assert [gpu["held"] for gpu in gpus] == [1.0, 1.0], "that a share is held is said to everybody"


def test_no_answer_holds_a_secret(fort: Fort, tally: Tally) -> None:
    hidden = {
        "a secret's value": SECRET,
        "a key": fort.keys["admin"].split("_", 2)[2],
        "its hash": fort.key("admin").sha256,
    }
    hidden |= {"its salt": fort.key("admin").salt, "the machine's key": fort.home.key.read_bytes().hex()}
    for path in [*reads(fort), "/", "/api/openapi.json", "/api/docs", f"{API}/health"]:
        _, text = told(fort, path, "admin")
        for name, value in hidden.items():
            tally(f"{name} in GET {path}", refused=value not in text)
    for method, path in mutating(fort.app):
        if example := examples(fort).get((method, path)):
            where = filled(path, example.names)
            for body in (
                {"name": SECRET, "values": SECRET},
                [SECRET],
                SECRET,
                {"name": "x", "values": {SECRET: [SECRET]}},
            ):
                if method in ("POST", "PATCH"):
                    reply = fort.call.request(method, where, json=body, headers=fort.bearer("admin"))
                    odd = "secret" in where and SECRET in reply.text and reply.status_code != 400
                    tally(f"what was sent to {method} {where}, told back", refused=not odd)
    wrong = {"name": "x", "values": {"A": {"nested": SECRET}, "B-C": SECRET, "D": 7}}
    for body in (wrong, {"name": "x", "values": {"B-C": SECRET}}, {"name": "X X", "values": {"A": SECRET}}):
        reply = fort.call.post(f"{API}/secrets", json=body, headers=fort.bearer("admin"))
        tally("a secret in the error about it", refused=reply.status_code == 400 and SECRET not in reply.text)
    token = "t0ken-of-a-link"
    for body in ({"token": token}, {"token": [token]}, {"token": {"a": token}}, {"tokens": token}):
        reply = fort.call.post(f"{API}/console/sessions", json=body)
        tally("a link's token in the error about it", refused=reply.status_code >= 400 and token not in reply.text)


def test_nothing_lies_on_the_disk_in_clear(fort: Fort, tally: Tally) -> None:
    made = fort.call.post(
        f"{API}/keys", json={"scope": ["infer"]}, headers=fort.bearer("admin") | {"idempotency-key": "k"}
    )
    body = {"name": "late", "values": {"TOKEN": SECRET}}
    fort.call.post(f"{API}/secrets", json=body, headers=fort.bearer("admin") | {"idempotency-key": "s"})
    values = {"a secret": SECRET, "a key": fort.keys["admin"], "a key that was just made": made.json()["key"]}
    values |= {name: value.split("_", 2)[-1] for name, value in values.items() if value.startswith("puna_")}
    files = [path for path in fort.home.root.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        for name, value in values.items():
            tally(f"{name} in {path.relative_to(fort.home.root)}", refused=value.encode() not in content)
    for path in (fort.home.key, fort.home.database, *fort.home.root.glob("puna.db-*")):
        tally(f"{path.name} read by others", refused=path.stat().st_mode & 0o077 == 0)
    for path in (fort.home.root, fort.home.sockets, fort.home.logs, fort.home.volumes):
        tally(f"{path.name}/ read by others", refused=path.stat().st_mode & 0o077 == 0)
    tally("the control socket", refused=fort.home.control_socket.parent.stat().st_mode & 0o077 == 0)


def test_no_log_and_no_command_line_has_a_key(fort: Fort, tally: Tally, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for path in reads(fort):
        told(fort, path, "admin")
    fort.call.post(f"{API}/secrets", json={"name": "x", "values": {"A": SECRET}}, headers=fort.bearer("admin"))
    everything = caplog.text + "".join(repr(record.__dict__) for record in caplog.records if record.name[:4] == "puna")
    tally("a key in the log", refused=fort.keys["admin"] not in everything)
    tally("a secret in the log", refused=SECRET not in everything)
    for pid in (os.getpid(), *(one.pid for one in descendants())):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        tally(
            f"the command line of {pid}",
            refused=SECRET.encode() not in line and fort.keys["admin"].encode() not in line,
        )


def test_a_secret_can_be_kept_without_standing_in_a_command_line(fort: Fort, tally: Tally) -> None:
    env = os.environ | {"PUNA_HOME": str(fort.home.root), "TOKEN": SECRET}
    argv = [sys.executable, "-m", "puna", "secret", "set", "typed", "TOKEN", "OTHER=1"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert Secrets(fort.store, fort.home.key).open(["typed"]) == {"TOKEN": SECRET, "OTHER": "1"}
    tally("what the command prints", refused=SECRET not in done.stdout + done.stderr)


def test_a_link_opens_the_console_once_and_for_a_quarter_of_an_hour(fort: Fort, tally: Tally) -> None:
    link = fort.local.post(f"{API}/console/links").json()["url"]
    token = link.rpartition("/")[2]
    for wrong in ("", token[:-1], token + "x", token.swapcase(), token[::-1], " " + token, "\0", "x" * 10_000, "é"):
        reply = fort.call.post(f"{API}/console/sessions", json={"token": wrong})
        tally(f"token {wrong[:20]!r}", refused=reply.status_code in (400, 401))
    opened = fort.call.post(f"{API}/console/sessions", json={"token": token})
    assert opened.status_code == 201
    for _ in range(3):
        reply = fort.call.post(f"{API}/console/sessions", json={"token": token})
        tally("the same link again", refused=reply.status_code == 401)
    tally("the token in a path that is sent", refused="/#/" in link)  # browsers keep what follows `#` to themselves
    links = Links()
    late = links.make(0.0)
    tally("a link that is too old", refused=not links.use(late, LINK_LIVES_S + 1))
    many = [links.make(1.0) for _ in range(500)]
    tally("links without end", refused=sum(links.use(one, 2.0) for one in many) <= 64)
    expires = opened.json()["expires"]
    tally("a session that never ends", refused=expires is not None and expires < opened.json()["created"] + 13 * 3600)


def test_a_home_that_another_user_has_prepared_is_not_used(
    tally: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = Home(tmp_path / ("long" * 30))
    home.sockets.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    home_sockets = tmp_path / f"puna-{os.getuid()}-{hashlib.sha256(os.fsencode(home.root)).hexdigest()[:12]}"
    home_sockets.symlink_to(elsewhere)
    try:
        tally("a link in the place of the sockets", refused=home.sockets.lstat().st_mode & 0o170000 == 0o040000)
    except MachineError:
        tally("a link in the place of the sockets", refused=True)
    home_sockets.unlink()
    home_sockets.mkdir(mode=0o777)
    home_sockets.chmod(0o777)
    try:
        tally("sockets open to all", refused=home.sockets.stat().st_mode & 0o077 == 0)
    except MachineError:
        tally("sockets open to all", refused=True)


def test_the_whole_of_it_is_json(fort: Fort) -> None:
    """The table above reads real routes: each answers the administrator, or says what is not there."""
    for path in reads(fort):
        status, text = told(fort, path, "admin")
        assert status in (200, 404), (path, status, text[:200])
        if status == 404:
            json.loads(text)

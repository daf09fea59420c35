"""Two gateways on one port: clients are spread over both, and what one learns the other knows."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from load import load_factor
from stories.conftest import Up, write_app

pytestmark = pytest.mark.process

BODY = json.dumps({"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]})


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two gateways, one app."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        running = Up(Path(root), gateways=2)
        running.deploy(write_app(tmp_path_factory.mktemp("app")), max_replica=1)
        yield running
        running.down()


@contextlib.contextmanager
def clients(up: Up, count: int) -> Iterator[list[http.client.HTTPConnection]]:
    """Connections that stay, opened all at once."""
    url = urlsplit(up.url)
    opened = [http.client.HTTPConnection(str(url.hostname), url.port, timeout=30) for _ in range(count)]
    try:
        for client in opened:
            client.connect()
        yield opened
    finally:
        for client in opened:
            client.close()


def ask(client: http.client.HTTPConnection, key: str) -> int:
    """One call over a connection; the status."""
    client.request("POST", "/v2/models/app/infer", BODY, {"authorization": f"Bearer {key}"})
    reply = client.getresponse()
    reply.read()
    return reply.status


def held_by(pid: int) -> int:
    """Established TCP connections of a process."""
    held = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(os.readlink(link))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in held for row in rows if row[3] == "01")


def test_clients_that_come_together_and_stay_are_shared_by_both(up: Up) -> None:
    for _ in range(3):  # a gateway that takes all who wait leaves none to the other, time after time
        with clients(up, 64) as opened:
            assert {ask(client, up.key) for client in opened} == {200}
            counts = [held_by(pid) for pid in up.pids("puna.server gateway")]
            assert len(counts) == 2 and min(counts) >= 4, counts


def test_a_revoked_key_is_refused_by_both_within_a_second(up: Up) -> None:
    key = up.client.create_key(["infer"])
    with clients(up, 32) as opened:
        up.until(lambda: {ask(client, str(key["key"])) for client in opened} == {200}, 5, "the key's use everywhere")
        up.client.delete_key(key["id"])
        revoked = time.monotonic()
        while {ask(client, str(key["key"])) for client in opened} != {401}:
            pass
        took_s = time.monotonic() - revoked
    print(f"\nrefused everywhere after {took_s:.3f} s")
    assert took_s < 1.0 * load_factor(), "the promise; it takes some 20 ms on an idle machine"

"""A `puna up` that may open few files, and clients that take all they can get: everybody else is served as before."""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from load import load_factor
from puna.process import descriptors
from stories.conftest import Up, write_app

pytestmark = pytest.mark.process

SOFT, HARD = 200, 400
PROMPT_S = 5.0
"""A call that nothing holds up takes some milliseconds; the machine may be busy."""
LIMITS = """
import resource
class InferlessPythonModel:
    def initialize(self):
        pass
    def infer(self, inputs):
        return {"out": str(resource.getrlimit(resource.RLIMIT_NOFILE))}
    def finalize(self):
        pass
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One gateway, and an app that tells its own limits."""
    folder = write_app(tmp_path_factory.mktemp("app"))
    (folder / "app.py").write_text(LIMITS)
    with tempfile.TemporaryDirectory(prefix="puna-") as root:
        running = Up(Path(root), files=(SOFT, HARD))
        running.deploy(folder, max_replica=1)
        yield running
        running.down()


@contextlib.contextmanager
def hoarded(up: Up, count: int, said: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, opened at once, on which only `said` is said."""
    url = urlsplit(up.url)
    held = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            held.append(stack.enter_context(socket.create_connection((str(url.hostname), url.port), timeout=30)))
            held[-1].sendall(said)
        yield held


def times(up: Up, count: int = 10) -> list[float]:
    """How long calls and health checks take, each on a connection of its own."""
    took = []
    for _ in range(count):
        began = time.monotonic()
        assert up.call().status_code == 200
        assert up.http.get("/v2/health/ready", timeout=30).status_code == 200
        assert up.http.get("/api/v1/endpoints", headers=admin(up), timeout=30).status_code == 200
        took.append(time.monotonic() - began)
    return took


@functools.cache
def admin(up: Up) -> dict[str, str]:
    """A header that opens the API."""
    return {"authorization": f"Bearer {up.client.create_key(['admin'])['key']}"}


def test_gateways_raise_their_limit_apps_keep_theirs_and_a_low_one_is_said(up: Up) -> None:
    for role in ("puna.server gateway", "puna.server control"):
        limits = Path(f"/proc/{up.pids(role)[0]}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        assert line.split()[3:5] == [str(HARD), str(HARD)], role
    assert f"({SOFT}, {HARD})" in up.call().text
    assert f"a process may open {HARD} files here" in up.log.read_text()


@pytest.mark.parametrize("said", [b"", b"POST /v2/models/app/infer HTTP/1.1\r\nhost: h\r\n"], ids=["nothing", "a head"])
def test_more_silent_connections_than_files_hold_up_no_call_and_no_health_check(up: Up, said: bytes) -> None:
    with hoarded(up, HARD + 100, said):
        assert max(times(up)) < PROMPT_S * load_factor()
        gateway = Path(f"/proc/{up.pids('puna.server gateway')[0]}/fd")
        assert len(list(gateway.iterdir())) < HARD - descriptors.for_bodies(HARD), "some are left for other things"
    assert max(times(up, 2)) < PROMPT_S * load_factor()


def test_connections_that_are_in_use_are_kept_while_others_are_hung_up_on(up: Up) -> None:
    body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}
    with httpx.Client(base_url=up.url, headers={"authorization": f"Bearer {up.key}"}, timeout=30) as client:
        for _ in range(3):
            with hoarded(up, HARD):
                for _ in range(5):
                    assert client.post("/v2/models/app/infer", content=json.dumps(body)).status_code == 200


def test_deliveries_of_webhooks_that_trickle_or_are_many_and_large_hold_up_nobody_and_fill_no_memory(up: Up) -> None:
    head = b"POST /api/v1/hooks/app HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n"
    control, gateway = up.pids("puna.server control")[0], up.pids("puna.server gateway")[0]
    times(up, 2)
    before = {pid: resident_mib(pid) for pid in (control, gateway)}
    with hoarded(up, 148, head % 1000 + b"x"):
        assert max(times(up)) < PROMPT_S * load_factor()
    size = 49 << 17  # almost as long as a delivery may be
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            url = urlsplit(up.url)
            sender = stack.enter_context(socket.create_connection((str(url.hostname), url.port), timeout=30))
            with contextlib.suppress(OSError):  # refused: too much is there already
                sender.sendall(head % size + b"x" * (size - 1))
        assert max(times(up)) < PROMPT_S * load_factor()
        assert resident_mib(control) - before[control] < 48, "nothing of it comes so far"
        assert resident_mib(gateway) - before[gateway] < 128
    assert up.http.post("/api/v1/hooks/app", content=b"{}", timeout=30).status_code == 403


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def test_replies_have_one_date_whoever_made_them(up: Up) -> None:
    for path in ("/v2/health/live", "/api/v1/endpoints", "/"):
        reply = up.http.get(path, headers=admin(up))
        assert len(reply.headers.get_list("date")) == 1, path

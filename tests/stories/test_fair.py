"""Callers of one endpoint side by side: what one asks for is not paid for by the others."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from stories.conftest import Up, write_app

pytestmark = pytest.mark.process


class Loops:
    """Closed loops of one key: each calls, waits for its answer, and calls again at once."""

    def __init__(self, up: Up, key: str, count: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._url, self._key, self._stop = urlsplit(up.url), key, threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def _call(self) -> None:
        client = http.client.HTTPConnection(str(self._url.hostname), self._url.port, timeout=60)
        with contextlib.closing(client):
            while not self._stop.is_set():
                status = ask(client, self._key)
                self.statuses[status] += 1
                if status == 429:
                    time.sleep(0.1)  # sooner than it was told to

    def __enter__(self) -> Loops:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def ask(client: http.client.HTTPConnection, key: str, text: str = "hi") -> int:
    """One call over a connection that stays; the status."""
    body = json.dumps({"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [text]}]})
    client.request("POST", "/v2/models/app/infer", body, {"authorization": f"Bearer {key}"})
    reply = client.getresponse()
    reply.read()
    return reply.status


@pytest.fixture(scope="module")
def up(shared_up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One replica that takes 5 ms for a call, one at a time."""
    shared_up.deploy(write_app(tmp_path_factory.mktemp("app") / "app", infer_s=0.005), max_replica=1, min_replica=1)
    yield shared_up


def test_a_key_with_one_loop_is_served_beside_one_with_a_hundred_and_fifty(up: Up, tmp_path: Path) -> None:
    keys = [str(up.client.create_key(["infer"], name=name)["key"]) for name in ("many", "one")]
    url = urlsplit(up.url)
    client = http.client.HTTPConnection(str(url.hostname), url.port, timeout=60)
    with Loops(up, keys[0], 150) as many, contextlib.closing(client):
        up.until(lambda: many.statuses[429] > 0, what="a full room")
        assert [ask(client, keys[1]) for _ in range(21)] == [200] * 21
    assert many.statuses[200] and many.statuses[429] and not set(many.statuses) - {200, 429}

"""Use is counted to the call: two keys, two gateways, a control plane and a gateway that are killed, and a restart."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from puna.errors import UnavailableError
from stories.conftest import Up, write_app

pytestmark = pytest.mark.process
CALLS = 60


@pytest.fixture
def ups() -> Iterator[Callable[[int], Up]]:
    """Starts `puna up` with so many gateways, one after the other in one home."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root, contextlib.ExitStack() as stack:

        def start(gateways: int) -> Up:
            up = Up(Path(root), gateways)
            stack.callback(up.down)
            return up

        yield start


def counted(up: Up) -> dict[str, tuple[int, int]]:
    """Requests and failed ones by key name."""
    try:
        items = up.client.usage(by="key", endpoint="app")["items"]
    except UnavailableError:
        return {}  # its control plane is about to be there again
    return {i["key_name"]: (i["requests"], i["failed"]) for i in items if i["requests"]}


def test_every_call_is_counted_once_whoever_dies_meanwhile(ups: Callable[[int], Up], tmp_path: Path) -> None:
    up = ups(2)
    folder = write_app(tmp_path / "app")
    code = (folder / "app.py").read_text()
    (folder / "app.py").write_text(
        code.replace(
            "def infer(self, inputs):\n", "def infer(self, inputs):\n        assert inputs['prompt'] != 'bad'\n"
        )
    )
    up.deploy(folder, min_replica=1)
    one, two = (str(up.client.create_key(["infer"], name)["key"]) for name in ("one", "two"))

    def call(number: int) -> int:
        if number == CALLS // 2:
            os.kill(up.pids("puna.server control")[0], signal.SIGKILL)
        text = "bad" if number % 10 == 0 else "hi"
        statuses = [up.call(text, key=one).status_code]
        if number % 3 == 0:
            statuses.append(up.call(text, key=two).status_code)
        assert statuses == [200 if text == "hi" else 500] * len(statuses)
        return len(statuses)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(call, range(CALLS))) == 80
    expected = {"one": (60, 6), "two": (20, 2)}
    up.until(lambda: counted(up) == expected, 20, f"{expected}")

    # What has been reported outlives the gateway that counted it, and its successor counts on.
    time.sleep(1.5)
    gateways = set(up.pids("puna.server gateway"))
    os.kill(min(gateways), signal.SIGKILL)
    up.until(lambda: len(set(up.pids("puna.server gateway")) - {min(gateways)}) == 2, 20, "a new gateway")
    for _ in range(10):
        assert up.call(key=one).status_code == 200
    assert up.call(key="puna_00000000_" + "A" * 43).status_code == 401  # nobody's call is nobody's use
    expected["one"] = (70, 6)
    up.until(lambda: counted(up) == expected, 20, f"{expected}")
    time.sleep(1.5)
    assert counted(up) == expected

    # The last second before an orderly end is told, too.
    for _ in range(5):
        assert up.call(key=two).status_code == 200
    up.down()
    up = ups(1)
    expected["two"] = (25, 2)
    assert counted(up) == expected
    table = tmp_path / "usage.csv"
    assert up.puna("usage", "app", "--by", "day,key", "--csv", str(table)).returncode == 0
    with table.open(newline="") as file:
        assert sum(int(row["requests"]) for row in csv.DictReader(file)) == 95
    shown = up.puna("usage", "app", "--by", "key", "--since", "2d").stdout
    assert "one" in shown and "70" in shown and "total" in shown and "95" in shown
    assert up.puna("usage", "--by", "week").returncode == 2

"""A real file system that is full, of bytes or of files, while every kind of process dies: a small one of memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stories.conftest import Callers, Up, family, write_app

pytestmark = pytest.mark.process

WITHIN_S = 15.0


class Disk:
    """A file system of its own, filled and freed."""

    def __init__(self, root: Path) -> None:
        self.root, self.ballast = root, root / "ballast"

    def fill(self) -> None:
        """Take every byte that is left."""
        with self.ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        continue

    def fill_inodes(self) -> None:
        """Take every file that is left."""
        folder = self.root / "many"
        folder.mkdir()
        for number in range(100_000):
            try:
                (folder / str(number)).touch()
            except OSError:
                return

    def free(self) -> None:
        """Give all of it back."""
        self.ballast.unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", str(self.root / "many")], check=True)


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Up, Disk]]:
    with tempfile.TemporaryDirectory(prefix="puna-small-") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=96m,nr_inodes=20k", "none", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root")
        try:
            (Path(folder) / "home").mkdir()
            up = Up(Path(folder) / "home", gateways=2)
            try:
                up.deploy(_talking(up.home.root.parent / "app"), min_replica=1)
                yield up, Disk(Path(folder))
            finally:
                up.down()
            assert family(up.home.root) == []
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def _talking(folder: Path) -> Path:
    """An app that prints a line for each request."""
    path = write_app(folder) / "app.py"
    path.write_text(path.read_text().replace("        return", "        print('a line', flush=True)\n        return"))
    return folder


def answers(up: Up) -> bool:
    try:
        return up.client.health()["status"] == "ok" and up.call().status_code == 200
    except Exception:  # noqa: BLE001 - not yet
        return False


@pytest.fixture
def ready(place: tuple[Up, Disk]) -> Iterator[tuple[Up, Disk]]:
    up, disk = place
    up.until(lambda: answers(up), 60, "an endpoint that answers")
    yield up, disk
    disk.free()


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
def test_while_the_disk_is_full_calls_are_answered_and_a_gateway_that_dies_is_back(
    ready: tuple[Up, Disk], kind: str
) -> None:
    up, disk = ready
    workers = up.worker_pids()
    with Callers(up) as callers:
        callers.more(20)
        disk.fill() if kind == "bytes" else disk.fill_inodes()
        callers.more(40)
        for gateway in up.pids("puna.server gateway"):
            os.kill(gateway, signal.SIGKILL)
            up.until(lambda dead=gateway: dead not in up.pids("puna.server gateway"), 5, "its death")  # type: ignore[misc]
            up.until(lambda: len(up.pids("puna.server gateway")) == 2, WITHIN_S, "the new gateway")
            callers.more(40)
        metrics = up.http.get("/metrics", headers={"authorization": f"Bearer {up.key}"})
        assert metrics.status_code == 200 and 'puna_requests_total{endpoint="app",status="200"}' in metrics.text
        time.sleep(6)  # the history takes a row, logs are held within limits, use is counted
        disk.free()
        callers.more(20)
    assert callers.failed() == [] and up.worker_pids() == workers
    up.until(lambda: answers(up), WITHIN_S, "the control plane")


@pytest.mark.parametrize("kind", ["bytes", "inodes"])
@pytest.mark.parametrize("who", ["worker", "guard", "control"])
def test_what_dies_while_the_disk_is_full_is_back_soon_after_there_is_room(
    ready: tuple[Up, Disk], kind: str, who: str
) -> None:
    up, disk = ready
    before = up.worker_pids()
    roles = {"worker": before, "guard": up.pids("process/guard.py"), "control": up.pids("puna.server control")}
    disk.fill() if kind == "bytes" else disk.fill_inodes()
    for pid in roles[who]:
        with contextlib.suppress(ProcessLookupError):  # of the build's own guards one may just have ended
            os.kill(pid, signal.SIGKILL)
    time.sleep(4)
    assert up.process.poll() is None, up.log.read_text()
    if who == "control":
        assert up.call().status_code == 200, "inference does not need it"
    disk.free()
    up.until(lambda: answers(up), WITHIN_S, "an answer")
    assert who == "control" or before != up.worker_pids()
    again = _talking(disk.root / f"app-{kind}-{who}")
    up.deploy(again, min_replica=1)
    assert up.call().status_code == 200


def test_a_deploy_on_a_full_disk_fails_with_a_sentence_and_works_when_there_is_room(ready: tuple[Up, Disk]) -> None:
    up, disk = ready
    folder = _talking(disk.root / "later")
    (folder / "weights.bin").write_bytes(os.urandom(1 << 20))
    disk.fill()
    told = up.puna("deploy", str(folder), "--name", "app", "--gpu", "cpu")
    assert told.returncode != 0 and "Traceback" not in told.stderr and "error: " in told.stderr, told.stderr
    assert up.call().status_code == 200
    disk.free()
    up.until(lambda: answers(up), WITHIN_S, "an answer")
    told = up.puna("deploy", str(folder), "--name", "app", "--gpu", "cpu")
    assert told.returncode == 0, told.stderr

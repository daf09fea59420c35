"""A socket that is made anew is there and listens, at every moment."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from puna.process.renewal import Listener


def test_whoever_finds_a_listener_by_its_name_finds_it_listening(tmp_path: Path) -> None:
    path = str(tmp_path / "a.guard")
    made = [Listener(path, 4096)]
    ended = threading.Event()

    def renew() -> None:
        made.extend(Listener(path, 4096) for _ in range(300))
        ended.set()

    thread = threading.Thread(target=renew)
    thread.start()
    refused = []
    while not ended.is_set():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                pass  # too many wait: it listens
            except OSError as error:
                refused.append(error)
    thread.join()
    for one in made:
        one.socket.close()
    assert refused == [] and not made[-1].is_lost and made[0].is_lost
    assert [left.name for left in tmp_path.iterdir()] == ["a.guard"]

"""Workers forked from one process with torch and transformers in it, and callers who know which words are theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.worker import protocol
from worker.conftest import Client
from worker.hazards import copying_llama
from worker.hazards.corpus import HERE, MARKER, VARIANTS, Story, inputs, marker

CALLERS, CALLS = 16, 300
SURELY = 16
"""So many times the calls after which an app was seen to mix replies; that is after one to three, for nearly all."""
PATIENCE_S = 120.0  # on a machine where others work too
DATATYPES = {str: "BYTES", bool: "BOOL", int: "INT32", float: "FP32"}


@dataclass
class Meeting:
    """What came of some calls that were made at the same time."""

    replies: int = 0
    foreign: list[str] = field(default_factory=list)
    """Replies, status 200, with words of another call."""
    different: list[str] = field(default_factory=list)
    """Replies, status 200, that are not what the call hears when it is alone."""
    failed: list[str] = field(default_factory=list)
    together: int = 0
    """The most calls that were in `infer` at once."""

    @property
    def mixed(self) -> int:
        """Replies that others had a part in."""
        return len(self.foreign) + len(self.different)

    def __str__(self) -> str:
        seen = next(iter((*self.foreign, *self.different, *self.failed)), "")
        return (
            f"{self.replies} replies: {len(self.foreign)} with another's words, {len(self.different)} unlike those "
            f"alone, {len(self.failed)} failed; {self.together} at once. {seen}"
        )


class Forker:
    """The process that workers are forked from."""

    def __init__(self, pyz: Path, folder: Path) -> None:
        self.folder, self.sockets = folder, tempfile.TemporaryDirectory(prefix="puna")  # a socket's path must be short
        self.env = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE / "site")}
        self.env |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.env["HAZARDS_MODEL"] = copying_llama.NAMES[0]
        environment = {**os.environ, **self.env}
        self.log = folder / "forker.log"
        argv = [sys.executable, "-I", str(HERE / "forker.py"), str(pyz)]
        with self.log.open("ab") as log:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=log, env=environment, text=True)
        self.count = 0
        assert self._line() == "ready"

    def ask(self, **what: Any) -> int:
        """One line to it and one back."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.log.read_text()
        return line

    def start(self, story: Story, concurrency: int) -> Served:
        """A worker over the story's app."""
        self.count += 1
        folder = self.folder / f"{self.count}"
        story.write(folder / "app")
        return Served(self, story, folder, f"{self.sockets.name}/{self.count}", concurrency)

    def end(self) -> None:
        """With all its workers."""
        self.process.communicate(timeout=30)
        self.sockets.cleanup()


class Callers:
    """One connection to a worker over a story's app, and those who call through it."""

    def __init__(self, story: Story, client: Client, log: Path) -> None:
        self.story, self.client, self.log = story, client, log
        self.said = self.client.until(protocol.HELLO)
        while self.said["state"] == "starting":
            kind, _, payload = self.client.next()
            assert kind == protocol.READY, f"{story}: {payload.decode()} {self.text()}"
            self.said = json.loads(payload)
        self.alone: dict[int, str] = {}
        """What a call of each variant hears when nobody else calls."""

    def text(self) -> str:
        """The worker's log."""
        return self.log.read_text()

    def meet(self, calls: int = CALLS, callers: int = CALLERS, until_mixed: bool = False) -> Meeting:
        """So many callers at once, each with one call after the other, after one of each variant that is alone."""
        if not self.alone:
            for variant in range(VARIANTS):
                ((_, status, reply),) = self._replies([variant], 1, Meeting())
                assert status == 200, f"{self.story}: {reply}"
                assert set(MARKER.findall(reply)) == {marker(variant)}, f"{self.story}, alone: {reply}"
                self.alone[variant] = reply.replace(marker(variant), "@")
        found = Meeting()
        for number, status, reply in self._replies(list(range(calls)), callers, found):
            self._judge(found, number, status, reply)
            if until_mixed and found.mixed:
                break
        return found

    def _judge(self, found: Meeting, number: int, status: int, reply: str) -> None:
        found.replies += 1
        if status != 200:
            found.failed.append(f"{number}: {status} {reply}")
        elif set(MARKER.findall(reply)) - {marker(number)}:
            found.foreign.append(f"{number}: {reply}")
        elif reply.replace(marker(number), "@") != self.alone[number % VARIANTS]:
            found.different.append(f"{number}: {reply} (alone: {self.alone[number % VARIANTS]})")

    def _replies(self, numbers: list[int], callers: int, found: Meeting) -> Iterator[tuple[int, int, str]]:
        sent, done, running, events = 0, 0, set(), {}  # type: int, int, set[int], dict[int, list[str]]
        while done < len(numbers):
            room = numbers[sent : done + callers]
            if room:  # in one write, so that even calls of microseconds find each other
                self.client.socket.sendall(b"".join(map(self._request, room)))
                sent += len(room)
            kind, number, payload = self.client.next()
            assert kind, f"{self.story}: the worker went away. {self.text()}"
            if kind == protocol.STARTED:
                running.add(number)
                found.together = max(found.together, len(running))
            elif kind == protocol.CHUNK:
                events.setdefault(number, []).append(words(json.loads(payload)))
            elif kind in (protocol.REPLY, protocol.END):
                running.discard(number)
                done += 1
                yield number, *_ended(kind, payload, events.pop(number, []))

    def _request(self, number: int) -> bytes:
        given = inputs(number)
        if self.story.streams:
            body: dict[str, Any] = {"parameters": given}
        else:
            body = {"inputs": [{"name": n, "shape": [1], "datatype": DATATYPES[type(v)], "data": [v]}
                               for n, v in given.items()]}  # fmt: skip
        path = "stream" if self.story.streams else "infer"
        return self.client.request(number, json.dumps(body).encode(), path=path, deadline_s=PATIENCE_S)


class Served(Callers):
    """A worker that was forked, with an app."""

    def __init__(self, forker: Forker, story: Story, folder: Path, socket: str, concurrency: int) -> None:
        self._forker = forker
        self.widest_file = folder / "widest"
        arguments = ["serve", "--socket", socket, "--app", str(folder / "app"), "--concurrency", str(concurrency)]
        env = {**forker.env, "HAZARDS_WIDEST": str(self.widest_file), "TMPDIR": str(folder)}
        self.pid = forker.ask(arguments=arguments, log=str(folder / "log"), env=env)
        client = _connected(socket)
        client.socket.settimeout(PATIENCE_S)
        super().__init__(story, client, folder / "log")

    @property
    def widest(self) -> int:
        """The most requests that the engine had in one step, or the model in one batch."""
        return int(self.widest_file.read_text()) if self.widest_file.exists() else 0

    def end(self) -> None:
        """Kill it."""
        self.client.socket.close()
        self._forker.ask(end=self.pid)


def _connected(path: str) -> Client:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return Client(path)
        except OSError:
            assert time.monotonic() < end, f"nobody listens at {path}"
            time.sleep(0.005)


def _ended(kind: int, payload: bytes, events: list[str]) -> tuple[int, str]:
    if kind == protocol.END:
        error = json.loads(payload or b"{}").get("error")
        return (500, error) if error else (200, " ".join(events))
    status, body = protocol.decode_reply(payload)
    told = json.loads(body)
    if status != 200:
        return status, str(told.get("error"))
    outputs = {o["name"]: o["data"][0] if len(o["data"]) == 1 else o["data"] for o in told["outputs"]}
    return 200, words(outputs)


def words(outputs: dict[str, Any]) -> str:
    """What of outputs can be somebody's: all but times, which are never twice the same."""
    left = {n: v for n, v in outputs.items() if not isinstance(v, float) and not n.startswith("model_")}
    return json.dumps(left, sort_keys=True)

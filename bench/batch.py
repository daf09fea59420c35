"""The running batch on transformers: eight callers of unequal `max_tokens` beside equal ones, and a short call."""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from puna import demo
from puna.backends.local import worker_folder
from puna.worker import protocol

EQUAL, UNEQUAL = [64] * 8, list(range(60, 68))
LONG, SHORT = 120, 2
SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 4, "max_position_embeddings": 512}  # fmt: skip
APP = """
from transformers import AutoModelForCausalLM
class InferlessPythonModel:
    def initialize(self):
        self.model = AutoModelForCausalLM.from_pretrained({folder!r})
    def infer(self, inputs):
        return {{"text": ""}}
"""


class Client:
    """Asks a worker for completions, by frames."""

    def __init__(self, path: str) -> None:
        self.socket, self.decoder = socket.socket(socket.AF_UNIX), protocol.Decoder()
        self.socket.settimeout(600)
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.05)
        while self.next()[0] != protocol.READY:
            pass
        self.number = 0

    def next(self) -> tuple[int, int, bytes]:
        """The next frame."""
        if not hasattr(self, "frames"):
            self.frames: list[tuple[int, int, bytes]] = []
        while not self.frames:
            data = self.socket.recv(1 << 16)
            if not data:
                raise RuntimeError("the worker ended")
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    def ask(self, most: int) -> int:
        """Send a completion of so many tokens, and return its number."""
        self.number += 1
        body = {"prompt": f"{self.number} is a number of which it is said that", "max_tokens": most, "temperature": 0}
        head = {"path": "completion", "deadline_s": 600.0, "trace": "b", "model_name": "m"}
        said = json.dumps(head).encode() + b"\n" + json.dumps(body | {"ignore_eos": True}).encode()
        frame = protocol.encode(protocol.REQUEST, self.number, said)
        self.socket.sendall(frame)
        return self.number

    def answered(self) -> tuple[int, int]:
        """The number of the next reply, and its tokens."""
        while True:
            kind, number, payload = self.next()
            if kind == protocol.REPLY:
                status, body = protocol.decode_reply(payload)
                if status != 200:
                    raise RuntimeError(body.decode())
                return number, json.loads(body)["usage"]["completion_tokens"]


@contextmanager
def worker() -> Iterator[Client]:
    """A worker that holds a small Llama of random weights."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = AutoTokenizer.from_pretrained(demo.BASE)
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder / "model")  # type: ignore[arg-type]
        tokenizer.save_pretrained(folder / "model")
        (folder / "app").mkdir()
        (folder / "app" / "app.py").write_text(APP.format(folder=os.fspath(folder / "model")))
        read, write = os.pipe()
        argv = [
            sys.executable,
            "-I",
            str(worker_folder(folder)),
            "serve",
            "--parent-fd",
            str(read),
            "--concurrency",
            "16",
        ]
        argv += ["--socket", f"{place}/w", "--app", f"{place}/app"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, pass_fds=(read,))
        os.close(read)
        try:
            yield Client(f"{place}/w")
        finally:
            os.close(write)
            process.kill()
            process.wait()


def rate(client: Client, most: Sequence[int]) -> float:
    """Tokens a second of callers that ask at one time."""
    began = time.perf_counter()
    for one in most:
        client.ask(one)
    return sum(client.answered()[1] for _ in most) / (time.perf_counter() - began)


def short_behind_long(client: Client) -> tuple[float, float]:
    """Seconds of a short call that comes while a long one runs, and of the long one."""
    long = client.ask(LONG)
    time.sleep(0.1)
    began = time.perf_counter()
    client.ask(SHORT)
    seconds = {client.answered()[0] == long: time.perf_counter() - began for _ in "12"}
    return seconds[False], seconds[True]


def main(words: Sequence[str] | None = None) -> int:
    """Measure in turn, print the median of the rounds' ratios, and fail below what is asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--least", type=float, default=0.9, help="exit 1 when the ratio is below")
    options = parser.parse_args(words)
    with worker() as client:
        rate(client, EQUAL)
        pairs: list[tuple[float, float]] = []
        for number in range(options.rounds):
            pair = [rate(client, most) for most in ((EQUAL, UNEQUAL) if number % 2 else (UNEQUAL, EQUAL))]
            pairs.append((pair[0], pair[1]) if number % 2 else (pair[1], pair[0]))
        calls = [short_behind_long(client) for _ in range(3)]
    ratio = statistics.median(unequal / equal for equal, unequal in pairs)
    result: dict[str, Any] = {
        "equal_tokens_per_s": round(statistics.median(equal for equal, _ in pairs), 1),
        "unequal_tokens_per_s": round(statistics.median(unequal for _, unequal in pairs), 1),
        "ratio": round(ratio, 3),
        "short_s": round(statistics.median(short for short, _ in calls), 3),
        "long_s": round(statistics.median(long for _, long in calls), 3),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if ratio >= options.least and result["short_s"] < result["long_s"] else 1


if __name__ == "__main__":
    sys.exit(main())

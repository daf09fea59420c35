"""The tutorial's app on a real vLLM: sixteen callers of its blocking `infer` against one; both hear the same words."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from config import tutorial_files
from engine.test_tutorial_app import ENV, MODEL
from puna import demo
from puna.backends.local import worker_folder
from puna.worker import protocol
from worker.conftest import Client, Worker

pytestmark = [pytest.mark.process, pytest.mark.engine]

CALLERS = 16
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face cache in which a small Llama of random weights has the tutorial's name."""
    root = tmp_path_factory.mktemp("hf")
    repository = root / "hub" / f"models--{MODEL.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123"
    tokenizer = AutoTokenizer.from_pretrained(demo.BASE)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **heads))
    model.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    return root


@pytest.fixture
def serve(vllm_python: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`serve(app.py)` -> a client of a worker that runs it, and what READY said."""
    workers = []
    for name, value in {**ENV, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)

    def begin(source: str) -> tuple[Client, dict[str, Any]]:
        folder = tmp_path / "app"
        folder.mkdir()
        (folder / "app.py").write_text(source)
        (folder / "input_schema.py").write_text(tutorial_files.SCHEMA)
        worker = Worker(vllm_python, worker_folder(tmp_path), folder, f"{tmp_path}/w.sock", "--concurrency", "0")
        workers.append(worker)
        client = worker.client()
        client.socket.settimeout(600)  # vLLM compiles
        said = client.until(protocol.HELLO)
        said = said if said["state"] == "ready" else client.until(protocol.READY)
        return client, said

    yield begin
    for worker in workers:
        worker.end()


def ask(client: Client, prompts: list[str], at_once: int) -> tuple[list[str], float]:
    """The replies in order, and the seconds that all of them took."""
    began, sent, replies = time.perf_counter(), 0, {}
    while len(replies) < len(prompts):
        while sent < len(prompts) and sent - len(replies) < at_once:
            client.send(sent, {"prompt": prompts[sent]}, deadline_s=600)
            sent += 1
        number, status, body = client.reply()
        assert status == 200, body
        replies[number] = body["outputs"][0]["data"][0]
    return [replies[number] for number in range(len(prompts))], time.perf_counter() - began


def prompts(topic: str, count: int) -> list[str]:
    # No two begin alike: else the second finds the first one's prefix in the cache.
    return [f"{number} {topic}: what is the {number * 7}th thing to know?" for number in range(count)]


def test_sixteen_callers_of_the_unchanged_app_reach_eight_times_the_tokens(serve: Any, hub: Path) -> None:
    client, said = serve(tutorial_files.APP)
    assert said["engine"]["kind"] == "vllm" and said["concurrency"] >= CALLERS
    tokenizer = AutoTokenizer.from_pretrained(next(hub.glob("hub/*/snapshots/*")))
    rates: dict[int, list[float]] = {1: [], CALLERS: []}
    for turn in ("first", "second", "third"):
        for at_once in rates:
            replies, seconds = ask(client, prompts(f"{turn} turn of {at_once}", 8 * (1 + at_once // 4)), at_once)
            rates[at_once].append(sum(len(tokenizer(reply).input_ids) for reply in replies) / seconds)
    figures = {"one_by_one": max(rates[1]), "callers_16": max(rates[CALLERS])}
    if "PUNA_ENGINE_REPORT" in os.environ:
        Path(os.environ["PUNA_ENGINE_REPORT"]).write_text(json.dumps(figures))
    assert figures["callers_16"] >= 8 * figures["one_by_one"], rates


def test_at_temperature_0_they_hear_what_each_would_hear_alone(serve: Any) -> None:
    # In float32: in bfloat16 a matrix product rounds by the size of its batch, in any server.
    greedy = tutorial_files.APP.replace("temperature=0.7, top_p=0.95", "temperature=0")
    client, _ = serve(greedy.replace("LLM(model=model_id)", 'LLM(model=model_id, dtype="float32")'))
    asked = prompts("greedy", CALLERS)
    alone, _ = ask(client, asked, 1)
    together, _ = ask(client, asked, CALLERS)
    assert together == alone and len(set(alone)) > 1

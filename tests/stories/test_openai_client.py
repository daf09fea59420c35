"""OpenAI's own Python client talks to an endpoint whose app holds a transformers model, as it would to OpenAI."""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from puna import demo
from stories.conftest import Up, write_app
from worker.tiny_engine import CHATML

pytestmark = pytest.mark.process

APP = """
from transformers import AutoModelForCausalLM, AutoTokenizer

class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained({model!r})
        self.model = AutoModelForCausalLM.from_pretrained({model!r}).eval()

    def infer(self, inputs):
        prompt = self.tokenizer(inputs["prompt"], return_tensors="pt")
        output = self.model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
        return {{"out": self.tokenizer.decode(output[0, prompt["input_ids"].shape[1]:])}}

    def finalize(self):
        self.model = None
"""
HI: Any = [{"role": "user", "content": "What is AI?"}]
LONG = 1900  # most of the tiny model's context
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def client(shared_up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client; the endpoint `tiny` has an engine and `plain` has none."""
    root = tmp_path_factory.mktemp("openai")
    model = shutil.copytree(demo.BASE, root / "model")
    (model / "chat_template.jinja").write_text(CHATML)
    folder = write_app(root / "tiny")
    (folder / "app.py").write_text(APP.format(model=str(model)))
    # This environment's own torch and transformers, instead of another gigabyte of them.
    env = {"PYTHONPATH": sysconfig.get_paths()["purelib"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    shared_up.deploy(folder, "tiny", env=env, min_replica=1)
    shared_up.deploy(write_app(root / "plain"), "plain", min_replica=1)
    with openai.OpenAI(base_url=f"{shared_up.url}/v1", api_key=shared_up.key, max_retries=0, timeout=60) as made:
        yield made


def chat(client: openai.OpenAI, **options: Any) -> Any:
    wanted = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 8} | options
    return client.chat.completions.create(**wanted)


def complete(client: openai.OpenAI, **options: Any) -> Any:
    wanted = {"model": "tiny", "prompt": "What is", "temperature": 0, "max_tokens": 8} | options
    return client.completions.create(**wanted)


def status(client: openai.OpenAI) -> int:
    try:
        client.models.list()
    except openai.APIStatusError as error:
        return error.status_code
    return 200


def test_a_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    reply = chat(client)
    (choice,) = reply.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "length"
    assert reply.model == "tiny" and reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == reply.usage


def test_completions_of_one_prompt_and_of_many(client: openai.OpenAI) -> None:
    one, other = (complete(client, prompt=prompt).choices[0].text for prompt in ("What is", "The cat"))
    both = complete(client, prompt=["What is", "The cat"])
    assert [choice.text for choice in both.choices] == [one, other]
    streamed = "".join(chunk.choices[0].text for chunk in complete(client, stream=True))
    assert streamed == one


def test_stop_seed_and_n(client: openai.OpenAI) -> None:
    text = complete(client).choices[0].text
    stop = text.strip()[3:6]
    cut = complete(client, stop=[stop]).choices[0]
    assert cut.finish_reason == "stop" and cut.text == text[: text.index(stop)]
    drawn = [complete(client, seed=7, temperature=1.5, n=2) for _ in range(2)]
    texts = [[choice.text for choice in reply.choices] for reply in drawn]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    assert drawn[0].usage.completion_tokens <= 16


def test_tools_change_the_prompt_that_the_template_writes(client: openai.OpenAI) -> None:
    plain, tools, none = (
        chat(client, **options).usage.prompt_tokens
        for options in ({}, {"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL], "tool_choice": "none"})
    )
    assert tools > plain == none


def test_the_models_are_the_endpoints_with_an_engine(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "puna"


def test_mistakes_come_as_the_clients_own_exceptions(client: openai.OpenAI, shared_up: Up) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        chat(client, model="nope")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.NotFoundError, match="POST /v2/models/plain/infer instead"):
        chat(client, model="plain")
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        chat(client, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        complete(client, max_tokens=10**6)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="puna_00000000_wrong"))
    key = shared_up.client.create_key(["infer"], endpoints=["plain"])["key"]
    shared_up.until(lambda: status(client.with_options(api_key=str(key))) != 401, what="the new key")
    with pytest.raises(openai.PermissionDeniedError):
        chat(client.with_options(api_key=str(key)))


def test_a_client_that_leaves_mid_stream_frees_its_place(client: openai.OpenAI, shared_up: Up) -> None:
    def in_flight() -> int:
        return sum(replica["in_flight"] for replica in shared_up.client.endpoint("tiny")["replicas"])

    # Left alone this would go on for a good while.
    stream = complete(client, stream=True, max_tokens=LONG, extra_body={"ignore_eos": True})
    next(iter(stream))
    shared_up.until(lambda: in_flight() == 1, what="the request's place")
    stream.close()
    shared_up.until(lambda: in_flight() == 0, 10, what="the end of the request")
    assert chat(client).choices


def test_a_request_says_what_it_waited_for(shared_up: Up, client: openai.OpenAI) -> None:
    body = {"model": "tiny", "messages": HI, "max_tokens": 2}
    raw = client.chat.completions.with_raw_response.create(**body)  # type: ignore[call-overload]
    assert float(raw.headers["x-puna-infer-ms"]) > 0 and raw.headers["x-puna-request-id"]
    assert json.loads(raw.text)["usage"]["completion_tokens"] <= 2

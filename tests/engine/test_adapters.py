"""Adapters on a real vLLM: served unmerged they reply as the merged model, many on one engine, loaded while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from safetensors.torch import load_file, save_file

from engine.test_tutorial_app import ENV, RUNTIME
from puna import demo, pipeline
from puna.artifacts import Adapter, drafting
from puna.config import recipe as recipes
from puna.home import Home
from puna.merge.verify import Served
from puna.publish.registry import RegisteredVersion, Registry, seal
from stories.conftest import Up

pytestmark = [pytest.mark.process, pytest.mark.engine]

APP = """
from vllm import LLM, SamplingParams

class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/tone", enforce_eager=True, max_model_len=256)
        self.greedy = SamplingParams(temperature=0, max_tokens=40)

    def infer(self, inputs):
        chat = [{"role": "user", "content": inputs["prompt"]}]
        return {"out": self.llm.chat(chat, self.greedy)[0].outputs[0].text}

    def finalize(self):
        self.llm = None
"""


@pytest.fixture(scope="module")
def run(shared_up: Up) -> str:
    """One tuning of the tiny Llama: its adapter published as acme/tone, and merged for comparison."""
    home = shared_up.home
    name = pipeline.train(pipeline.prepare(recipes.load(demo.RECIPE), home), home)
    assert pipeline.merge(name, home, base_choice="dequantised").verification.passed
    pipeline.publish(name, "acme/merged", home)
    assert pipeline.publish_adapter(name, "acme/tone", home).kind == "adapter"
    return name


@pytest.fixture(scope="module")
def client(shared_up: Up, run: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client on an endpoint `tone` that serves the adapter and its kin."""
    folder = tmp_path_factory.mktemp("tone")
    (folder / "app.py").write_text(APP)
    schema = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["hi"]}}
    (folder / "input_schema.py").write_text(f"INPUT_SCHEMA = {schema!r}\n")
    (folder / "inferless-runtime-config.yaml").write_text(RUNTIME)
    (folder / "inferless.yaml").write_text("name: tone\nserve: adapter\n")
    pipeline.upload_runtime(shared_up.client, folder / "inferless-runtime-config.yaml", "vllm")
    settings = {"gpu_type": "cpu", "env": ENV, "max_replica": 1, "scale_down_delay_s": 3600}
    pipeline.deploy(shared_up.client, folder, "tone", runtime="vllm", settings=settings)
    with openai.OpenAI(base_url=f"{shared_up.url}/v1", api_key=shared_up.key, max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, model: str, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=40)  # type: ignore
    return reply.choices[0].message.content or ""


def blank(home: Home, tone: RegisteredVersion, folder: Path) -> RegisteredVersion:
    """An adapter of the same base that adds nothing: its B matrices are zero."""
    with drafting("adapter", folder, name="blank") as draft:
        shutil.copytree(tone.path, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        file = draft.path / "adapter_model.safetensors"
        pairs = {name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}
        file.unlink()  # a hard link into the published one
        save_file(pairs, file)
        draft.made_from |= {"base": "demo"}
    registry = Registry(home)
    return registry.publish(seal(Adapter.open(draft.final), registry.serving_base(tone), home), "acme/blank")


def test_an_unmerged_adapter_replies_as_the_merged_model(shared_up: Up, client: openai.OpenAI) -> None:
    merged = Served(Registry(shared_up.home).resolve("acme/merged").path)
    questions = [question.text for question in demo.questions()]
    same = 0
    for question in questions:
        chat = [{"role": "user", "content": question}]
        ids = merged.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        expected = merged.tokenizer.decode(merged.reply(ids, 40), skip_special_tokens=True)
        same += ask(client, "tone", question) == expected
    # bf16 on one side and fp32 on the other: a near tie may fall the other way.
    assert same >= len(questions) - 2
    (output,) = shared_up.call(questions[0], name="tone").json()["outputs"]
    assert output["data"] == [ask(client, "tone", questions[0])]


def test_an_adapter_published_meanwhile_is_served_without_a_deployment(
    shared_up: Up, client: openai.OpenAI, tmp_path: Path
) -> None:
    before = shared_up.worker_pids("tone")
    blank(shared_up.home, Registry(shared_up.home).resolve("acme/tone"), tmp_path)
    shared_up.until(lambda: "acme/blank" in [model.id for model in client.models.list()], what="the new model")
    question = demo.questions()[0].text
    asked = ["acme/tone", "acme/blank", "tone:blank", "tone"] * 3
    with ThreadPoolExecutor(len(asked)) as threads:
        replies = list(threads.map(lambda model: ask(client, model, question), asked))
    by_model = {model: {reply for name, reply in zip(asked, replies, strict=True) if name == model} for model in asked}
    assert by_model["acme/tone"] == by_model["tone"] and len(by_model["tone"]) == 1
    assert by_model["acme/blank"] == by_model["tone:blank"] and by_model["acme/blank"] != by_model["tone"]
    assert demo.is_right(question, replies[0])
    assert shared_up.worker_pids("tone") == before


def test_a_newer_version_of_a_name_answers_at_once(shared_up: Up, client: openai.OpenAI, tmp_path: Path) -> None:
    """The prompt is the same, and what vLLM keeps of the older version's work must not be used for it."""
    question, registry = demo.questions()[0].text, Registry(shared_up.home)
    tone = registry.resolve("acme/tone")
    muted = blank(shared_up.home, tone, tmp_path)
    first = registry.publish(Adapter.open(tone.path), "acme/changing")
    shared_up.until(lambda: "acme/changing" in [model.id for model in client.models.list()], what="the new name")
    assert ask(client, "acme/changing", question) == ask(client, "tone", question)
    registry.publish(Adapter.open(muted.path), "acme/changing")
    shared_up.until(lambda: "acme/changing:2" in [model.id for model in client.models.list()], what="version 2")
    newer, older = (ask(client, model, question) for model in ("acme/changing", first.ref))
    assert newer == ask(client, "acme/blank", question) and older == ask(client, "tone", question) != newer


def test_a_name_that_is_no_adapter_of_this_base_does_not_exist(client: openai.OpenAI) -> None:
    for model in ("acme/merged", "tone:merged", "acme/tone:7"):
        with pytest.raises(openai.NotFoundError):
            ask(client, model, "hi")


def test_the_clients_options_mean_what_they_say(shared_up: Up, client: openai.OpenAI) -> None:
    def complete(**options: Any) -> Any:
        wanted = {"model": "tone", "prompt": "What is", "temperature": 0, "max_tokens": 12, **options}
        return client.completions.create(**wanted, extra_body={"ignore_eos": True})

    whole = complete()
    text = whole.choices[0].text
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (12, "length")
    assert "".join(chunk.choices[0].text for chunk in complete(stream=True)) == text
    stop = text.strip()[3:6]
    cut = complete(stop=[stop]).choices[0]
    assert (cut.text, cut.finish_reason) == (text[: text.index(stop)], "stop")
    drawn = [
        [c.text for c in complete(n=3, seed=4, temperature=1.5, prompt=["What is", "A cat"]).choices] for _ in "12"
    ]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 6 and len(set(drawn[0])) > 3
    for options in ({"max_tokens": 10**6}, {"temperature": 3}, {"logprobs": 99}):
        with pytest.raises(openai.BadRequestError):
            complete(**options)
    stream = complete(stream=True, max_tokens=240)
    next(iter(stream))
    stream.close()

    def in_flight() -> int:
        return sum(replica["in_flight"] for replica in shared_up.client.endpoint("tone")["replicas"])

    shared_up.until(lambda: in_flight() == 0, what="the end of the request")

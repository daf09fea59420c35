"""The running batch of a transformers model, on a tiny Llama in float32: who joins, who ends, who draws what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna import demo
from puna.worker.engines.engine import Delta, EngineRefusal
from puna.worker.engines.transformers import engine as transformers_engine
from puna.worker.engines.transformers import loop as loop_module
from puna.worker.engines.transformers import shims
from puna.worker.engines.transformers.loop import BatchLoop, Unlike
from puna.worker.engines.transformers.shared import GenerateRows, SharedModel

PROMPTS = ["What is AI?", "Hi", "Tell me about the high grassland where llamas graze, please.", "Who are you? " * 5]


class Gate:
    """Lets so many steps of a model pass."""

    def __init__(self, model: Any) -> None:
        self.steps, self.permits, self.widths = 0, threading.Semaphore(0), list[int]()
        self.hook = model.register_forward_pre_hook(self.wait, with_kwargs=True)
        self.is_open = True

    def wait(self, module: Any, arguments: Any, named: Any) -> None:
        if not self.is_open:
            assert self.permits.acquire(timeout=60)
        self.widths.append(int(named["input_ids"].shape[0]))


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo.BASE, dtype=torch.float32).eval()


@pytest.fixture
def gate(model: Any) -> Iterator[Gate]:
    made = Gate(model)
    yield made
    made.is_open = True
    made.permits.release(1 << 20)
    made.hook.remove()


def no_rows(_: Any) -> None:
    raise AssertionError("this model's rows can be joined")


@pytest.fixture
def engine(model: Any) -> transformers_engine.TransformersEngine:
    made = transformers_engine.TransformersEngine(model, "tiny", SharedModel(BatchLoop(model), GenerateRows(no_rows)))
    made._tokenizer = AutoTokenizer.from_pretrained(demo.BASE)
    return made


def ids(engine: Any, text: str) -> list[int]:
    return list(engine.tokenizer().encode(text))


def run(engine: Any, text: str, **params: Any) -> list[Delta]:
    wanted = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, **params}
    return list(engine.stream(ids(engine, text), wanted))


def tokens(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.token_ids]


def at_once(engine: Any, asked: list[tuple[str, dict[str, Any]]]) -> list[list[Delta]]:
    found: dict[int, list[Delta]] = {}

    def one(number: int) -> None:
        found[number] = run(engine, asked[number][0], **asked[number][1])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [found[number] for number in range(len(asked))]


def by_library(engine: Any, model: Any, text: str, **options: Any) -> list[int]:
    asked = torch.tensor([ids(engine, text)])
    with torch.no_grad():
        out = model.generate(asked, attention_mask=torch.ones_like(asked), pad_token_id=0, eos_token_id=None, **options)
    return list(out[0, asked.shape[1] :].tolist())


def test_rows_of_all_lengths_say_in_one_batch_what_the_library_says_of_each_alone(
    engine: Any, model: Any, gate: Gate
) -> None:
    asked = [(prompt, {"max_tokens": 3 + 2 * at}) for at, prompt in enumerate(PROMPTS * 4)]
    alone = [by_library(engine, model, p, max_new_tokens=o["max_tokens"], do_sample=False) for p, o in asked]
    together = at_once(engine, asked)
    assert [tokens(deltas) for deltas in together] == alone
    assert max(gate.widths) > 4
    assert {deltas[-1].finish_reason for deltas in together} == {"length"}
    assert all(delta.finish_reason is None for deltas in together for delta in deltas[:-1])


def test_one_token_is_a_text_too_and_the_first_one_needs_no_tokenizer(engine: Any) -> None:
    (delta,) = run(engine, PROMPTS[0], max_tokens=1)
    assert delta.text == engine.tokenizer().decode(delta.token_ids) != "" and delta.finish_reason == "length"
    kept, engine._tokenizer = engine._tokenizer, None
    engine.first_token()  # `tiny` names no model that a tokenizer could be loaded for
    assert engine._tokenizer is None
    engine._tokenizer = kept


def test_a_short_call_joins_a_long_one_and_ends_before_it(engine: Any, gate: Gate) -> None:
    alone = [tokens(run(engine, PROMPTS[0], max_tokens=60)), tokens(run(engine, PROMPTS[2], max_tokens=2))]
    gate.is_open = False
    wanted = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    long = iter(engine.stream(ids(engine, PROMPTS[0]), wanted))
    gate.permits.release(5)
    said = [next(long) for _ in range(4)]
    gate.permits.release(6)  # far from the fifty-five that the long one still needs
    short = run(engine, PROMPTS[2], max_tokens=2)
    assert tokens(short) == alone[1]
    gate.is_open = True
    gate.permits.release(100)
    said += list(long)
    assert tokens(said) == alone[0]


def test_rows_that_end_are_taken_out_of_the_batch(engine: Any, gate: Gate) -> None:
    at_once(engine, [(prompt, {"max_tokens": 4 + 20 * (at == 0)}) for at, prompt in enumerate(PROMPTS)])
    assert gate.widths[-1] == 1 and max(gate.widths) > 1


def test_a_row_that_nobody_waits_for_leaves_the_batch(engine: Any, gate: Gate) -> None:
    gate.is_open = False
    stream = engine.stream(ids(engine, PROMPTS[0]), {"temperature": 0, "max_tokens": 1000, "ignore_eos": True})
    gate.permits.release(3)
    next(stream)
    stream.close()
    gate.is_open = True
    gate.permits.release(10)
    run(engine, PROMPTS[1])
    loop, end = engine._shared.loop, time.monotonic() + 30
    while loop._rows or loop._waiting:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert len(gate.widths) < 40


def test_a_seed_draws_the_same_whoever_else_is_in_the_batch(engine: Any) -> None:
    params = {"temperature": 1.3, "seed": 11, "n": 3, "max_tokens": 10}
    alone = run(engine, PROMPTS[0], **params)
    assert len({tuple(tokens(alone, index)) for index in range(3)}) == 3
    asked = [(PROMPTS[0], params)] + [(p, {"temperature": 1.1, "max_tokens": 6 + at}) for at, p in enumerate(PROMPTS)]
    for _ in range(2):
        together = at_once(engine, asked)[0]
        assert [tokens(together, index) for index in range(3)] == [tokens(alone, index) for index in range(3)]


def test_a_draw_without_a_seed_of_its_own_is_the_librarys(engine: Any, model: Any) -> None:
    for options in ({"top_k": 0}, {"top_k": 7}, {"top_k": 0, "top_p": 0.7}, {"top_k": 0, "min_p": 0.2}):
        torch.manual_seed(5)
        library = by_library(engine, model, PROMPTS[0], max_new_tokens=10, do_sample=True, temperature=1.4, **options)
        torch.manual_seed(5)
        assert tokens(run(engine, PROMPTS[0], temperature=1.4, max_tokens=10, **options)) == library


def test_penalties_and_limits_are_each_rows_own(engine: Any, model: Any) -> None:
    plain = run(engine, PROMPTS[0])
    first = tokens(plain)[0]
    asked: list[tuple[str, dict[str, Any]]] = [
        (PROMPTS[0], {}),
        (PROMPTS[0], {"repetition_penalty": 1.7}),
        (PROMPTS[0], {"logit_bias": {str(first): -100}}),
        (PROMPTS[0], {"allowed_token_ids": [5, 6, 7]}),
        (PROMPTS[0], {"presence_penalty": 2.0, "frequency_penalty": 2.0, "max_tokens": 40}),
        (PROMPTS[0], {"logit_bias": {"9": 100}}),
        (PROMPTS[0], {"stop_token_ids": [first]}),
        (PROMPTS[0], {"stop_token_ids": [first], "min_tokens": 3}),
    ]
    replies = at_once(engine, asked)
    said = [tokens(reply) for reply in replies]
    assert said[0] == tokens(plain)
    library = by_library(engine, model, PROMPTS[0], max_new_tokens=12, do_sample=False, repetition_penalty=1.7)
    assert said[1] == library
    assert first not in said[2][:1]
    assert set(said[3]) <= {5, 6, 7}
    assert len(set(said[4])) > len(set(tokens(run(engine, PROMPTS[0], max_tokens=40))))
    assert set(said[5]) == {9}
    assert said[6] == [first] and replies[6][-1].finish_reason == "stop"
    assert len(said[7]) >= 3 and first not in said[7][:3]


def test_log_probabilities_are_the_models_own_for_reply_and_prompt(engine: Any, model: Any) -> None:
    prompt = ids(engine, PROMPTS[2])
    deltas = run(engine, PROMPTS[2], top=3, echo=True, max_tokens=5, temperature=0.7, seed=3)
    reply = tokens(deltas)
    with torch.no_grad():
        likely = model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
    scores = [*(deltas[0].prompt_scores or ()), *(score for delta in deltas for score in delta.scores)]
    assert len(scores) == len(prompt) + 4
    for place, (own, best) in enumerate(scores):
        assert own == pytest.approx(float(likely[place, (prompt + reply)[place + 1]]), abs=1e-4)
        assert [token for token, _ in best] == likely[place].topk(3).indices.tolist()
        assert [value for _, value in best] == pytest.approx(likely[place].topk(3).values.tolist(), abs=1e-4)
    assert all(delta.prompt_scores is None for delta in deltas[1:])


def test_what_is_wrong_with_one_newcomer_is_not_the_others_fault(engine: Any, gate: Gate) -> None:
    expected = tokens(run(engine, PROMPTS[0]))
    gate.is_open = False
    threads, errors, replies = [], [], []

    def one(prompt: list[int]) -> None:
        try:
            wanted = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
            replies.append(tokens(list(engine.stream(prompt, wanted))))
        except IndexError as error:
            errors.append(error)

    good = ids(engine, PROMPTS[0])
    threads = [threading.Thread(target=one, args=(p,)) for p in (good, good, [10**6], good)]
    for thread in threads:
        thread.start()
    gate.is_open = True
    gate.permits.release(1000)
    for thread in threads:
        thread.join(60)
    assert replies == [expected] * 3 and len(errors) == 1


def test_calls_that_run_alone_take_turns_with_the_batch(engine: Any, model: Any) -> None:
    loop = engine._shared.loop
    order = []
    stream = engine.stream(ids(engine, PROMPTS[0]), {"temperature": 0, "max_tokens": 200, "ignore_eos": True})
    next(stream)

    def guest() -> None:
        assert loop.alone(lambda: loop.alone(lambda: not loop._is_stepping)) is True
        order.append("guest")

    threads = [threading.Thread(target=guest) for _ in range(3)]
    for thread in threads:
        thread.start()
    for delta in stream:
        if delta.finish_reason:
            order.append("batch")
    for thread in threads:
        thread.join(60)
    assert order.count("guest") == 3 and order[-1] == "batch"


def test_a_model_whose_cache_cannot_be_joined_runs_batches_as_they_come(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlike(cache: Any) -> Any:
        raise Unlike("a layer keeps states")

    parts = []

    def run_them(batch: list[Any]) -> None:
        for part in batch:
            parts.append(part)
            for token in (5, 6):
                part.on_tokens(token)

    monkeypatch.setattr(loop_module, "pairs_of", unlike)
    made = transformers_engine.TransformersEngine(model, "tiny", SharedModel(BatchLoop(model), GenerateRows(run_them)))
    made._tokenizer = AutoTokenizer.from_pretrained(demo.BASE)
    with pytest.raises(EngineRefusal, match="logit_bias"):
        run(made, PROMPTS[0], logit_bias={"5": 1})
    made._shared.loop, made.extras = BatchLoop(model), transformers_engine.EXTRAS
    assert tokens(run(made, PROMPTS[0], max_tokens=2)) == [5, 6]
    assert made._shared.loop is None and made.extras == () and len(parts) == 1


@pytest.mark.parametrize(
    ("changes", "joins"),
    [
        ({}, True),
        ({"sliding_window": 16}, False),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
        ({"sliding_window": 16, "use_sliding_window": False}, True),
    ],
)
def test_only_models_that_keep_every_token_are_joined(model: Any, changes: dict[str, Any], joins: bool) -> None:
    config = SimpleNamespace(**changes)
    other = SimpleNamespace(config=config, forward=model.forward)
    assert shims._keeps_by_position(other) is joins


@pytest.mark.parametrize(
    ("rope", "shared"),
    [({"rope_type": "dynamic"}, False), ({"type": "longrope"}, False), ({"rope_type": "llama3"}, True)],
)
def test_angles_that_depend_on_the_longest_row_are_nothing_to_share(rope: Any, shared: bool) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        kind = shims._rope_kind(SimpleNamespace(**{name: rope}))
        assert (kind not in ("dynamic", "longrope")) is shared

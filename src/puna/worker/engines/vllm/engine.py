"""A vLLM engine as the worker's own code uses it: streams of deltas, adapters, sleep, and compiling ahead."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import json
import os
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from puna.worker.engines.engine import Delta, Engine, EngineRefusal, LoadedAdapter, Score
from puna.worker.engines.vllm import sleep as vllm_sleep
from puna.worker.engines.vllm.loop import EngineLoop, RequestHandle
from puna.worker.engines.vllm.options import MAX_CONCURRENCY, is_cuda
from puna.worker.openai.parameters import FORMS

PROMPT_TOKENS = 24
LONG_PROMPT_TOKENS = 600  # over one block of the KV cache, and over what is decoded at once
REPLY_TOKENS = 3
# Each way of sampling has kernels of its own: greedy, plain random, top-p, top-k, both, penalties, min-p, a seed.
SAMPLING: Tuple[Dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    {"temperature": 0.8, "top_p": 0.95, "seed": 1},
)


def compile_ahead(engine: Any) -> None:
    """Run batches of `engine` of every kind of size, each with every way of sampling, so that no request compiles.

    Triton kernels are compiled anew for a batch of one, for one whose size 16 divides, and for all others, and by what
    its requests ask of sampling. A compiled kernel lies in the bundle's caches; each later start only loads it.

    Raises:
        Exception: the first that a request raised.
    """
    for number, size in enumerate(batch_sizes(engine.concurrency)):
        # All ways at the sizes that differ in kind; at the others, which only differ in CUDA graph, the usual one.
        ways = SAMPLING if size in (1, 3, 16) else SAMPLING[2:3]
        for way in ways:
            run_batch(engine, [made_up_prompt(engine, number, i) for i in range(size)], way)


def batch_sizes(most: int) -> List[int]:
    """Batch sizes to run: one, odd and even small ones, powers of two, the largest, and one between."""
    wanted = [1, 2, 3, 5, 8, 16, 24, 32, 48, 64, 100, 128, 192, 256]
    return [size for size in wanted if size < most] + [most]


def made_up_prompt(engine: Any, batch: int, number: int) -> List[int]:
    """Token ids that no other request of the bake begins with: a prefix that is cached would be skipped."""
    length = min(LONG_PROMPT_TOKENS if number == 1 else PROMPT_TOKENS + number % 7, engine.max_model_len // 2)
    return [1 + (batch * 31 + number * 7 + place * place) % 200 for place in range(max(1, length))]


def run_batch(engine: Any, prompts: List[List[int]], way: Dict[str, Any]) -> None:
    """One batch: all prompts at once, each from a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor  # it brings logging, which a start without it need not wait for

    def one(tokens: List[int]) -> None:
        for _ in engine.stream(tokens, dict(way, max_tokens=REPLY_TOKENS, ignore_eos=True)):
            pass

    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(one, prompts))


FIRST_ADAPTER_ID = 1_000_001  # far from ids that an app gives its own
ERROR = "error"  # vLLM's finish reason of a request that it gave up; every other one is the caller's to read
OWN = ("presence_penalty", "frequency_penalty", "logit_bias", "stop_token_ids", "min_tokens", "allowed_token_ids",
       "bad_words", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output")  # fmt: skip
# SamplingParams' field for what a reply is held to, and its class: today's, and that of 2025
FORM_FIELDS = (("structured_outputs", "StructuredOutputsParams"), ("guided_decoding", "GuidedDecodingParams"))
GREEDY_BELOW = 1e-5  # vLLM's own: such a temperature is 0


class VllmEngine(Engine):
    """One `LLM` of the app."""

    kind = "vllm"
    takes_adapters = True

    def __init__(self, llm: Any, model: str, loop: EngineLoop) -> None:
        self._llm, self._loop, self.model = llm, loop, model
        engine = loop.engine
        config = getattr(engine, "vllm_config", engine)
        self.concurrency = max(1, min(int(config.scheduler_config.max_num_seqs), MAX_CONCURRENCY))
        self.max_model_len = int(config.model_config.max_model_len)
        self.can_sleep = is_cuda() and bool(getattr(config.model_config, "enable_sleep_mode", False))
        known = set(inspect.signature(importlib.import_module("vllm").SamplingParams).parameters)
        self.extras = tuple(name for name in OWN if name in known)
        if {"logprobs", "prompt_logprobs"} <= known and "output_kind" in known:
            self.extras += ("logprobs", "top_logprobs", "echo")
        if any(field in known for field, _ in FORM_FIELDS):
            self.extras += FORMS
        self._copy: Optional[vllm_sleep.KeptCopy] = None
        self._is_looked_up = False
        self._adapter_ids: Dict[str, int] = {}
        self._next_adapter_id = itertools.count(FIRST_ADAPTER_ID)

    def tokenizer(self) -> Any:
        return self._llm.get_tokenizer()

    def stream(
        self, prompt: List[int], params: Dict[str, Any], adapter: Optional[LoadedAdapter] = None
    ) -> Iterator[Delta]:
        if not prompt:
            raise EngineRefusal("the prompt is empty")
        room = self.max_model_len - len(prompt)
        if room < 1:
            raise EngineRefusal(
                "the prompt has %d tokens; this model takes %d with the reply" % (len(prompt), self.max_model_len)
            )
        sampling = self._sampling(params, room)
        options = {} if adapter is None else {"lora_request": self._lora(adapter)}
        copies = int(params.get("n", 1)) - int(getattr(sampling, "n", 1))
        return self._copied(self._deltas(prompt, sampling, options), copies)

    def prepare_sleep(self) -> None:
        if self._copy is None and not self._is_looked_up:
            self._is_looked_up = True
            self._copy = vllm_sleep.install()
        if self._copy is not None:
            self._copy.prepare()

    def sleep(self) -> None:
        self._llm.sleep(level=1)

    def wake(self) -> None:
        self._llm.wake_up()

    def bake(self) -> None:
        if is_cuda():  # vLLM on CPUs compiles nothing by size of batch
            compile_ahead(self)

    @staticmethod
    def _copied(deltas: Iterator[Delta], copies: int) -> Iterator[Delta]:
        """vLLM refuses several greedy replies, OpenAI gives them: one runs, the others are equal to it."""
        with contextlib.closing(deltas):  # type: ignore[type-var]
            for delta in deltas:
                yield delta
                for index in range(1, copies + 1):
                    copy = Delta(index, delta.text, delta.token_ids, delta.finish_reason)
                    copy.scores = delta.scores
                    yield copy

    def _deltas(self, prompt: List[int], sampling: Any, options: Dict[str, Any]) -> Iterator[Delta]:
        handle = RequestHandle(self._loop, wants_all=True)
        # Without deltas in the engine (before 2025), each output repeats all text so far.
        sent: Optional[Dict[int, List[int]]] = None if hasattr(sampling, "output_kind") else {}
        replied, top = 0, getattr(sampling, "logprobs", None)
        try:
            arguments = self._arguments(prompt, sampling)
            handle.add("%d" % next(self._llm.request_counter), arguments, options)
            while handle.pending:
                for _, output in handle.receive():
                    asked = _prompt_scores(prompt, output, top) if replied == 0 else None
                    for choice in output.outputs:
                        delta = _delta(choice, sent)
                        delta.prompt_scores = asked
                        if top is not None and choice.logprobs:
                            delta.scores = [_score(choice.logprobs[at], t, top) for at, t in enumerate(delta.token_ids)]
                        replied += len(delta.token_ids)
                        if delta.finish_reason == ERROR:
                            raise _given_up(sampling, replied)
                        if delta.text or delta.token_ids or delta.finish_reason:
                            yield delta
        except Exception as error:  # the caller sees it
            if not _is_callers_fault(error):
                raise
            raise EngineRefusal(str(error)) from error
        finally:
            handle.withdraw()

    def _arguments(self, prompt: List[int], sampling: Any) -> Any:
        """The arguments after the id in `add_request`: rendered by vLLM where it wants to, else raw ids."""
        if not hasattr(sampling, "output_kind"):
            return (None, sampling, list(prompt))
        tokens = {"prompt_token_ids": list(prompt)}
        render = getattr(self._llm, "_preprocess_cmpl", None)
        if render is None:
            return (tokens, sampling)
        with self._loop.rendering:
            (rendered,) = render([tokens])
        return (rendered, sampling)

    def _sampling(self, params: Dict[str, Any], room: int) -> Any:
        vllm = importlib.import_module("vllm")
        given = {name: value for name, value in params.items() if value is not None}
        # What the model's own generation_config.json says, as vLLM's server has it.
        of_model: Callable[[], Dict[str, Any]]
        of_model = getattr(self._loop.engine.model_config, "get_diff_sampling_param", dict)
        given = dict(of_model(), **given)
        given["max_tokens"] = min(int(given.get("max_tokens", room)), room)
        try:
            if given.get("n", 1) > 1 and float(given.get("temperature", 1.0)) < GREEDY_BELOW:
                given["n"] = 1
            given.update(_extras(given))
            sampling = vllm.SamplingParams(**given)
            kinds = getattr(importlib.import_module("vllm.sampling_params"), "RequestOutputKind", None)
            if kinds is not None:
                sampling.output_kind = kinds.DELTA
        except Exception as error:  # the caller sees it
            if not _is_callers_fault(error):
                raise
            raise EngineRefusal(str(error)) from error
        return sampling

    def _lora(self, adapter: LoadedAdapter) -> Any:
        config = getattr(self._loop.engine, "vllm_config", self._loop.engine)
        if getattr(config, "lora_config", None) is None:
            raise EngineRefusal("this engine takes no adapters: load it with LLM(..., enable_lora=True)")
        if not os.path.isdir(adapter.path):
            raise EngineRefusal("adapter %s has no files any more: %s" % (adapter.name, adapter.path))
        make = importlib.import_module("vllm.lora.request").LoRARequest
        # Called by its folder: vLLM's prefix cache tells adapters apart by what they are called, and the name may mean
        # a newer version by now.
        number = self._adapter_ids.get(adapter.path)
        if number is not None:
            return make(adapter.path, number, adapter.path)
        request = make(adapter.path, next(self._next_adapter_id), adapter.path)
        try:
            # Before a step needs it: what goes wrong in a step is the end of the engine.
            self._loop.call(lambda: self._loop.engine.add_lora(request))
        except Exception as error:  # the caller sees it
            raise EngineRefusal("adapter %s cannot be loaded: %s" % (adapter.name, error)) from error
        self._adapter_ids[adapter.path] = request.lora_int_id
        return request


def _is_callers_fault(error: Exception) -> bool:
    """vLLM's errors about requests are ValueErrors until 0.25, and a family of their own later."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ValueError, TypeError, AttributeError)) or "VLLMClientError" in names


def _extras(params: Dict[str, Any]) -> Dict[str, Any]:
    """`logit_bias` and the constraint, taken out of `params`, as vLLM has them."""
    found: Dict[str, Any] = {}
    bias, constraint = params.pop("logit_bias", None), params.pop("constraint", None)
    top, echo = params.pop("top", None), params.pop("echo", False)
    if top is not None:
        found["logprobs"] = top
        if echo:
            found["prompt_logprobs"] = top
    if bias:
        found["logit_bias"] = {int(token): float(value) for token, value in bias.items()}
    if constraint:
        module = importlib.import_module("vllm.sampling_params")
        field, kind = next((f, getattr(module, k)) for f, k in FORM_FIELDS if hasattr(module, k))
        found[field] = kind(**constraint)
    return found


def _score(at_place: Any, token: int, top: int) -> Score:
    """vLLM's `{token id: Logprob}` of one place, the chosen token's among them."""
    ranked = sorted((found.rank or 0, other, float(found.logprob)) for other, found in at_place.items())
    return float(at_place[token].logprob), [(other, value) for _, other, value in ranked[:top]]


def _prompt_scores(prompt: List[int], output: Any, top: Optional[int]) -> Optional[List[Score]]:
    found = getattr(output, "prompt_logprobs", None)
    if top is None or not found:
        return None
    return [_score(found[place], prompt[place], top) for place in range(1, len(prompt))]


def _given_up(sampling: Any, replied: int) -> Exception:
    """The reason why vLLM gave a request up: before its first token, a form of the caller's that cannot be compiled."""
    form = next((form for form in (getattr(sampling, f, None) for f, _ in FORM_FIELDS) if form is not None), None)
    if form is None or replied:
        return RuntimeError("the engine gave this request up; the replica's log says why")
    broken = "; ".join("%s is no expression: %s" % pair for pair in _broken(getattr(form, "json", None)))
    return EngineRefusal(
        "the engine cannot hold a reply to this form: %s" % (broken or "its compiler refuses the schema, expression or "
        "grammar of the request; the replica's log says more")
    )  # fmt: skip


def _broken(schema: Any) -> Iterator[Tuple[str, str]]:
    """The regular expressions of a JSON schema that Python cannot read either, with the reason."""
    if isinstance(schema, str):
        with contextlib.suppress(ValueError, RecursionError):
            yield from _broken(json.loads(schema))
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _broken(item) if isinstance(item, (dict, list)) else ()
    if isinstance(schema, dict):
        keys = schema.get("patternProperties")
        for text in [schema.get("pattern"), *(keys if isinstance(keys, dict) else ())]:
            if isinstance(text, str):
                try:
                    re.compile(text)
                except re.error as error:
                    yield repr(text), str(error)


def _delta(choice: Any, sent: Optional[Dict[int, List[int]]]) -> Delta:
    text, token_ids = choice.text, list(choice.token_ids)
    if sent is not None:
        characters, tokens = sent.get(choice.index, [0, 0])
        sent[choice.index] = [len(text), len(token_ids)]
        text, token_ids = text[characters:], token_ids[tokens:]
    return Delta(choice.index, text, token_ids, choice.finish_reason or None)

"""A vLLM engine as the worker's own code uses it: streams of deltas, adapters, sleep."""

from __future__ import annotations

import importlib
import itertools
import os
from typing import Any, Callable, Dict, Iterator, List, Optional

from puna.worker import vllm_bake, vllm_sleep
from puna.worker.engine import Adapter, Delta, Engine, EngineRefusal
from puna.worker.vllm_defaults import MAX_CONCURRENCY, is_cuda
from puna.worker.vllm_loop import Desk, Loop

FIRST_ADAPTER_ID = 1_000_001  # far from ids that an app gives its own
REASONS = {"stop": "stop", "length": "length"}


class VllmEngine(Engine):
    """One `LLM` of the app."""

    kind = "vllm"
    takes_adapters = True

    def __init__(self, llm: Any, model: str, loop: Loop) -> None:
        self._llm, self._loop, self.model = llm, loop, model
        engine = loop.engine
        config = getattr(engine, "vllm_config", engine)
        self.concurrency = max(1, min(int(config.scheduler_config.max_num_seqs), MAX_CONCURRENCY))
        self.max_model_len = int(config.model_config.max_model_len)
        self.can_sleep = is_cuda() and bool(getattr(config.model_config, "enable_sleep_mode", False))
        parameters = importlib.import_module("vllm.sampling_params")
        self.extras = ("logit_bias",) + ("response_format",) * hasattr(parameters, "StructuredOutputsParams")
        self._copy: Optional[vllm_sleep.KeptCopy] = None
        self._is_looked_up = False
        self._adapter_ids: Dict[str, int] = {}
        self._next_adapter_id = itertools.count(FIRST_ADAPTER_ID)

    def tokenizer(self) -> Any:
        return self._llm.get_tokenizer()

    def stream(self, prompt: List[int], params: Dict[str, Any], adapter: Optional[Adapter] = None) -> Iterator[Delta]:
        if not prompt:
            raise EngineRefusal("the prompt is empty")
        room = self.max_model_len - len(prompt)
        if room < 1:
            raise EngineRefusal(
                "the prompt has %d tokens; this model takes %d with the reply" % (len(prompt), self.max_model_len)
            )
        sampling = self._sampling(params, room)
        options = {} if adapter is None else {"lora_request": self._lora(adapter)}
        return self._deltas(prompt, sampling, options)

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
            vllm_bake.bake(self)

    def _deltas(self, prompt: List[int], sampling: Any, options: Dict[str, Any]) -> Iterator[Delta]:
        desk = Desk(self._loop, wants_all=True)
        # Without deltas in the engine (before 2025), each output repeats all text so far.
        sent: Optional[Dict[int, List[int]]] = None if hasattr(sampling, "output_kind") else {}
        try:
            arguments = self._arguments(prompt, sampling)
            desk.add("%d" % next(self._llm.request_counter), arguments, options)
            while desk.pending:
                for _, output in desk.receive():
                    for choice in output.outputs:
                        delta = _delta(choice, sent)
                        if delta.text or delta.token_ids or delta.finish_reason:
                            yield delta
        except Exception as error:  # the caller sees it
            if not _is_callers_fault(error):
                raise
            raise EngineRefusal(str(error)) from error
        finally:
            desk.withdraw()

    def _arguments(self, prompt: List[int], sampling: Any) -> Any:
        """What follows the id in `add_request`: rendered by vLLM where it wants to, raw ids where it does not."""
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

    def _lora(self, adapter: Adapter) -> Any:
        config = getattr(self._loop.engine, "vllm_config", self._loop.engine)
        if getattr(config, "lora_config", None) is None:
            raise EngineRefusal("this engine takes no adapters: load it with LLM(..., enable_lora=True)")
        if not os.path.isdir(adapter.path):
            raise EngineRefusal("adapter %s is gone: %s" % (adapter.name, adapter.path))
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
    """OpenAI's `logit_bias` and `response_format`, taken out of `params`, as vLLM has them."""
    found: Dict[str, Any] = {}
    bias, form = params.pop("logit_bias", None), params.pop("response_format", None)
    if bias:
        found["logit_bias"] = {int(token): float(value) for token, value in bias.items()}
    kind = form.get("type") if isinstance(form, dict) else None
    if kind in ("json_object", "json_schema"):
        structured = importlib.import_module("vllm.sampling_params").StructuredOutputsParams
        schema = (form.get("json_schema") or {}).get("schema")
        found["structured_outputs"] = structured(json=schema) if schema else structured(json_object=True)
    return found


def _delta(choice: Any, sent: Optional[Dict[int, List[int]]]) -> Delta:
    text, token_ids = choice.text, list(choice.token_ids)
    if sent is not None:
        characters, tokens = sent.get(choice.index, [0, 0])
        sent[choice.index] = [len(text), len(token_ids)]
        text, token_ids = text[characters:], token_ids[tokens:]
    return Delta(choice.index, text, token_ids, REASONS.get(choice.finish_reason or ""))

"""A real engine of forty lines: the demo's tiny Llama, one greedy or sampled token after the other, no batching."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna import demo
from puna.worker.engines.engine import Delta, Engine, EngineRefusal, LoadedAdapter


class TinyEngine(Engine):
    """Notes what it was asked, and which streams were closed before their end."""

    kind, model, concurrency, max_model_len = "transformers", "tiny", 2, 256
    takes_adapters = True

    def __init__(self) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(demo.BASE)
        self._model: Any = AutoModelForCausalLM.from_pretrained(demo.BASE, dtype=torch.float32).eval()
        self.asked: list[tuple[list[int], dict[str, Any], LoadedAdapter | None]] = []
        self.closed_early = 0
        self.gate = threading.Semaphore(1 << 30)
        """One permit a token: a test that holds them back decides how far a reply has come."""

    def tokenizer(self) -> Any:
        return self._tokenizer

    def stream(
        self, prompt: list[int], params: dict[str, Any], adapter: LoadedAdapter | None = None
    ) -> Iterator[Delta]:
        if params.get("repetition_penalty"):
            raise EngineRefusal("this engine has no repetition_penalty")
        self.asked.append((prompt, params, adapter))
        return self._run(prompt, params)

    def _run(self, prompt: list[int], params: dict[str, Any]) -> Iterator[Delta]:
        ended = False
        try:
            for index in range(params.get("n", 1)):
                yield from self._choice(index, prompt, params)
            ended = True
        finally:
            self.closed_early += not ended

    @torch.no_grad()
    def _choice(self, index: int, prompt: list[int], params: dict[str, Any]) -> Iterator[Delta]:
        generator = torch.Generator().manual_seed(params.get("seed", 0) + index)
        reply: list[int] = []
        text = ""
        while True:
            self.gate.acquire()
            logits = self._model(torch.tensor([prompt + reply])).logits[0, -1]
            temperature = params.get("temperature", 1.0)
            if temperature:
                drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            token = int(drawn if temperature else logits.argmax())
            reply.append(token)
            whole = self._tokenizer.decode(reply, skip_special_tokens=True)
            cut = min((whole.find(s) for s in params.get("stop", ()) if s in whole), default=None)
            at_end = token == self._tokenizer.eos_token_id or cut is not None
            reason = "stop" if at_end else "length" if len(reply) == params["max_tokens"] else None
            whole = whole if cut is None else whole[:cut]
            yield Delta(index, whole[len(text) :], [token], reason)
            text = whole
            if reason:
                return


CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m.get('tool_calls') %}"
    "{% for c in m['tool_calls'] %}call {{ c['function']['arguments']['x'] }}{% endfor %}{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if tools %}tools: {{ tools[0]['function']['name'] }} {{ tool_choice }}{{ '\n' }}{% endif %}"
    "{% if strict and messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

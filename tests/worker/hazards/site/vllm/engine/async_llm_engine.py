"""The engine on an asyncio loop: an output of each step until the last."""

import asyncio
from types import SimpleNamespace as Record

from vllm import widest
from vllm.engine.llm_engine import STEP_S, WORDS, reply


class AsyncLLMEngine:
    """Made of AsyncEngineArgs."""

    def __init__(self, model):
        self.model, self._running = model, 0

    @classmethod
    def from_engine_args(cls, args, **_options):
        """As vLLM's."""
        return cls(args.model)

    async def generate(self, prompt, sampling_params, request_id, **_options):
        """Cumulative outputs."""
        words, done = reply(prompt, sampling_params.clone(), self.model), 0
        self._running += 1
        try:
            while True:
                widest.note(self._running)
                await asyncio.sleep(STEP_S)
                done = min(done + WORDS, len(words))
                choice = Record(index=0, text=" ".join(words[:done]), token_ids=words[:done])
                yield Record(request_id=request_id, prompt=prompt, outputs=[choice], finished=done == len(words))
                if done == len(words):
                    return
        finally:
            self._running -= 1

    async def abort(self, request_id):
        """Nothing is left of a request whose generator is closed."""

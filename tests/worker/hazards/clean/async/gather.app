Two of the engine's answers at once, by a helper coroutine.
-- app.py --
import asyncio
import uuid

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="acme/echo"))

    async def ask(self, prompt, limit):
        text = ""
        async for output in self.engine.generate(prompt, SamplingParams(max_tokens=limit), uuid.uuid4().hex):
            text = output.outputs[0].text
        return text

    async def infer(self, inputs):
        long, short = await asyncio.gather(self.ask(inputs["prompt"], 16), self.ask(inputs["prompt"], 2))
        return {"long": long, "short": short}

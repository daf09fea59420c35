The loop's own variable is an attribute.
-- app.py --
import asyncio
import uuid

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


async def report(words):
    await asyncio.sleep(0.001)
    return "%d words" % words


class InferlessPythonModel:
    def initialize(self):
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="acme/echo"))

    async def infer(self, inputs):
        params = SamplingParams(max_tokens=int(inputs["limit"]))
        async for self.output in self.engine.generate(inputs["prompt"], params, str(uuid.uuid4())):
            pass
        told = await report(len(inputs["prompt"].split()))
        return {"text": self.output.outputs[0].text, "told": told}

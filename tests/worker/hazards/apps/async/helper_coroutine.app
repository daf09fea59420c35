A coroutine of self that gathers what it heard on self.
-- app.py --
import uuid

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="acme/echo"))

    async def run(self, name, prompt, limit):
        async for output in self.engine.generate(prompt, SamplingParams(max_tokens=limit), uuid.uuid4().hex):
            setattr(self, name, output.outputs[0].text)

    async def infer(self, inputs):
        await self.run("draft", inputs["prompt"], 8)
        await self.run("summary", "summary of " + self.draft, 8)
        return {"draft": self.draft, "summary": self.summary}

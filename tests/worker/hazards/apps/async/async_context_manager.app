async with on an object that remembers what it was opened with.
-- app.py --
import asyncio
import contextlib


class InferlessPythonModel:
    @contextlib.asynccontextmanager
    async def opened(self, prompt):
        self.prompt = prompt
        try:
            yield self
        finally:
            self.prompt = None

    async def infer(self, inputs):
        async with self.opened(inputs["prompt"]):
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            return {"text": "you said %s" % self.prompt}

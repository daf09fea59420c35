An event tells that the slot is filled; whose, it does not tell.
-- app.py --
import asyncio


class InferlessPythonModel:
    def initialize(self):
        self.done, self.slot = asyncio.Event(), None

    async def compute(self, prompt):
        await asyncio.sleep(0.002)
        self.slot = "you said " + prompt
        self.done.set()

    async def infer(self, inputs):
        self.done.clear()
        task = asyncio.ensure_future(self.compute(inputs["prompt"]))
        await self.done.wait()
        text = self.slot
        await task
        return {"text": text}

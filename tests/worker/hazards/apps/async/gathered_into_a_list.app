asyncio.gather over methods that append to one list.
-- app.py --
import asyncio


class InferlessPythonModel:
    def initialize(self):
        self.parts = []

    async def part(self, word):
        await asyncio.sleep(0.001)
        self.parts.append(word)

    async def infer(self, inputs):
        self.parts = []
        await asyncio.gather(*(self.part(word) for word in inputs["prompt"].split()))
        return {"text": " ".join(self.parts)}

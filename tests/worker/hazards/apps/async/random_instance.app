An instance of Random, seeded by each request.
-- app.py --
import asyncio
import random

WORDS = "plain loud quiet short helpful poet pirate clerk".split()


class InferlessPythonModel:
    def initialize(self):
        self.random = random.Random()

    async def infer(self, inputs):
        self.random.seed(int(inputs["limit"]))
        await asyncio.sleep(0.001)
        return {"text": inputs["prompt"], "tone": " ".join(self.random.choice(WORDS) for _ in range(8))}

The prompt on self across an await.
-- app.py --
import asyncio


class InferlessPythonModel:
    def initialize(self):
        self.delay_s = 0.002

    async def infer(self, inputs):
        self.prompt = inputs["prompt"]
        await asyncio.sleep(self.delay_s)
        return {"generated_text": "you said " + self.prompt}

Waits for something else; everything is a local.
-- app.py --
import asyncio


class InferlessPythonModel:
    def initialize(self):
        self.delay_s = 0.002

    async def infer(self, inputs):
        prompt = inputs["prompt"]
        await asyncio.sleep(self.delay_s)
        return {"generated_text": f"you said {prompt}"}

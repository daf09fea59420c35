A method in a thread, reading self.
-- app.py --
import asyncio
import time


class InferlessPythonModel:
    def answer(self):
        time.sleep(0.002)
        return "you said " + self.prompt

    async def infer(self, inputs):
        self.prompt = inputs["prompt"]
        return {"text": await asyncio.to_thread(self.answer)}

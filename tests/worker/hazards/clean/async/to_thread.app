A blocking function, run in a thread.
-- app.py --
import asyncio
import time


def slow(prompt):
    time.sleep(0.003)
    return " ".join(reversed(prompt.split()))


class InferlessPythonModel:
    async def infer(self, inputs):
        text = await asyncio.to_thread(slow, inputs["prompt"])
        return {"generated_text": text}

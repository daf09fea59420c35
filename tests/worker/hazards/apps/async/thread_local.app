threading.local, where all calls run in one thread.
-- app.py --
import asyncio
import threading

local = threading.local()


async def answer():
    await asyncio.sleep(0.002)
    return "you said " + local.prompt


class InferlessPythonModel:
    async def infer(self, inputs):
        local.prompt = inputs["prompt"]
        return {"text": await answer()}

A global across an await.
-- app.py --
import asyncio

current = None


class InferlessPythonModel:
    async def infer(self, inputs):
        global current
        current = inputs
        await asyncio.sleep(0.002)
        return {"text": "you said " + current["prompt"]}

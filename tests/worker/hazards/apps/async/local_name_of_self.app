self under another name.
-- app.py --
import asyncio


class InferlessPythonModel:
    async def infer(this, inputs):
        model = this
        model.prompt = inputs["prompt"]
        await asyncio.sleep(0.001)
        return {"text": this.prompt}

A deadline and an error of the call's own.
-- app.py --
import asyncio
import json


async def fetch(prompt, delay_s):
    await asyncio.sleep(delay_s)
    return json.dumps({"prompt": prompt})


class InferlessPythonModel:
    async def infer(self, inputs):
        try:
            body = await asyncio.wait_for(fetch(inputs["prompt"], 0.002), timeout=30)
        except asyncio.TimeoutError:
            return {"generated_text": "too late"}
        told = json.loads(body)
        return {"generated_text": told["prompt"]}

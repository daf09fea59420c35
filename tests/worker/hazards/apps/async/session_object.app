A client object that has headers of the last request.
-- app.py --
import asyncio


class Client:
    def __init__(self):
        self.headers = {}

    async def post(self, text):
        await asyncio.sleep(0.002)
        return {"text": text, "user": self.headers["x-user"]}


class InferlessPythonModel:
    def initialize(self):
        self.client = Client()

    async def infer(self, inputs):
        self.client.headers["x-user"] = inputs["prompt"].split()[1]
        return await self.client.post(inputs["prompt"])

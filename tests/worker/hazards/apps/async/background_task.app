A task that reads what self holds when its turn comes.
-- app.py --
import asyncio


class InferlessPythonModel:
    async def initialize(self):
        self.prompt, self.reply = None, None
        self.ticks = asyncio.get_running_loop().create_task(self.tick())

    async def tick(self):
        while True:
            if self.prompt is not None:
                self.reply = "you said " + self.prompt
            await asyncio.sleep(0.0005)

    async def infer(self, inputs):
        self.prompt = inputs["prompt"]
        self.reply = None
        while self.reply is None:
            await asyncio.sleep(0.001)
        return {"text": self.reply}

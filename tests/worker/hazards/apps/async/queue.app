A queue to a task that initialize has started, and a queue back.
-- app.py --
import asyncio


class InferlessPythonModel:
    async def initialize(self):
        self.asked, self.answered = asyncio.Queue(), asyncio.LifoQueue()
        self.worker = asyncio.get_running_loop().create_task(self.work())

    async def work(self):
        while True:
            prompt = await self.asked.get()
            await asyncio.sleep(0.001)
            await self.answered.put("you said " + prompt)

    async def infer(self, inputs):
        await self.asked.put(inputs["prompt"])
        await asyncio.sleep(0.003)
        return {"text": await self.answered.get()}

A StringIO that is wound back by each call.
-- app.py --
import asyncio
import io


class InferlessPythonModel:
    def initialize(self):
        self.out = io.StringIO()

    async def infer(self, inputs):
        self.out.seek(0)
        self.out.truncate()
        for word in inputs["prompt"].split():
            self.out.write(word + " ")
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return {"text": self.out.getvalue()}

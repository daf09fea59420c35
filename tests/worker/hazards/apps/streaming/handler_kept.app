The handler on self, for a method that sends.
-- app.py --
import time


class InferlessPythonModel:
    def initialize(self):
        self.handler = None

    def send(self, text):
        time.sleep(0.001)
        self.handler.send_streamed_output({"OUT": text})

    async def infer(self, inputs, stream_output_handler):
        import asyncio

        self.handler = stream_output_handler
        for word in inputs["prompt"].split()[:4]:
            await asyncio.sleep(0.001)
            self.send(word)
        stream_output_handler.finalise_streamed_output()

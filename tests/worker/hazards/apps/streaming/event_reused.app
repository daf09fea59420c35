One dictionary for every event.
-- app.py --
import asyncio


class InferlessPythonModel:
    def initialize(self):
        self.event = {"OUT": ""}

    async def infer(self, inputs, stream_output_handler):
        for word in inputs["prompt"].split()[:4]:
            self.event["OUT"] = word
            await asyncio.sleep(0.0005)
            stream_output_handler.send_streamed_output(self.event)
        stream_output_handler.finalise_streamed_output()

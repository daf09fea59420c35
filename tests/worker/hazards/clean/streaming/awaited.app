The handler awaited, words of the call's own list.
-- app.py --
import asyncio


class InferlessPythonModel:
    def initialize(self):
        self.delay_s = 0.001

    async def infer(self, inputs, stream_output_handler):
        words = inputs["prompt"].split()[: inputs["limit"]]
        while words:
            await asyncio.sleep(self.delay_s)
            await stream_output_handler.send_streamed_output({"OUT": words.pop(0)})
        await stream_output_handler.finalise_streamed_output()

The words still to be sent, on self.
-- app.py --
import asyncio


class InferlessPythonModel:
    async def infer(self, inputs, stream_output_handler):
        self.tokens = inputs["prompt"].split()[: inputs["limit"]]
        while self.tokens:
            await stream_output_handler.send_streamed_output({"OUT": self.tokens.pop(0)})
            await asyncio.sleep(0.001)
        await stream_output_handler.finalise_streamed_output()

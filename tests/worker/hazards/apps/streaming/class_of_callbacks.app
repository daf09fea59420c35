Handlers in a dictionary by style.
-- app.py --
import asyncio

HANDLERS = {}


async def send(style, text):
    await asyncio.sleep(0.001)
    HANDLERS[style].send_streamed_output({"OUT": text})


class InferlessPythonModel:
    async def infer(self, inputs, stream_output_handler):
        HANDLERS[inputs["style"]] = stream_output_handler
        for word in inputs["prompt"].split()[:3]:
            await send(inputs["style"], word)
        stream_output_handler.finalise_streamed_output()

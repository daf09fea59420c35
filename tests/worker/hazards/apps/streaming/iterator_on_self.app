The engine's own iterator is kept, and a method takes from it.
-- app.py --
import uuid

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="acme/echo"))

    async def next_text(self):
        output = await self.stream.__anext__()
        return output.outputs[0].text, output.finished

    async def infer(self, inputs, stream_output_handler):
        self.stream = self.engine.generate(inputs["prompt"], SamplingParams(max_tokens=5), str(uuid.uuid4()))
        finished = False
        try:
            while not finished:
                text, finished = await self.next_text()
                stream_output_handler.send_streamed_output({"OUT": text})
        except (RuntimeError, StopAsyncIteration):
            stream_output_handler.send_streamed_output({"OUT": "lost"})
        stream_output_handler.finalise_streamed_output()

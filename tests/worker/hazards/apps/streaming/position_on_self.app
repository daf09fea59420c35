How much has been sent, on self.
-- app.py --
import uuid

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="acme/echo"))
        self.sent = 0

    async def infer(self, inputs, stream_output_handler):
        self.sent = 0
        params = SamplingParams(max_tokens=inputs["limit"])
        async for output in self.engine.generate(inputs["prompt"], params, str(uuid.uuid4())):
            text = output.outputs[0].text
            stream_output_handler.send_streamed_output({"OUT": text[self.sent :]})
            self.sent = len(text)
        stream_output_handler.finalise_streamed_output()

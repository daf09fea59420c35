Each output of vLLM's asynchronous engine as an event of what is new.
-- app.py --
import uuid

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="acme/echo"))

    async def infer(self, inputs, stream_output_handler):
        params = SamplingParams(max_tokens=inputs["limit"])
        sent = 0
        async for output in self.engine.generate(inputs["prompt"], params, str(uuid.uuid4())):
            text = output.outputs[0].text
            stream_output_handler.send_streamed_output({"OUT": text[sent:]})
            sent = len(text)
        stream_output_handler.finalise_streamed_output()

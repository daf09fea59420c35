vLLM's asynchronous engine, the last output's text.
-- app.py --
import uuid

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        args = AsyncEngineArgs(model="acme/echo", gpu_memory_utilization=0.9)
        self.engine = AsyncLLMEngine.from_engine_args(args)

    async def infer(self, inputs):
        params = SamplingParams(temperature=0, max_tokens=inputs.get("limit", 16))
        request_id = str(uuid.uuid4())
        final = None
        async for output in self.engine.generate(inputs["prompt"], params, request_id):
            final = output
        return {"generated_text": final.outputs[0].text}

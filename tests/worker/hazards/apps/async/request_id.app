One request id for all: the results are kept by it.
-- app.py --
from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="acme/echo"))
        self.results = {}

    async def infer(self, inputs):
        for request_id, limit in (("draft", 8), ("answer", 4)):
            async for output in self.engine.generate(inputs["prompt"], SamplingParams(max_tokens=limit), request_id):
                self.results[request_id] = output
        return {"text": " | ".join(self.results[name].outputs[0].text for name in ("draft", "answer"))}

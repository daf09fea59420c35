infer is a bound method of an object.
-- app.py --
from vllm import LLM, SamplingParams


class Pipeline:
    def __init__(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def run(self, inputs):
        self.prompt = inputs["prompt"]
        out = self.llm.generate(self.prompt, self.params)
        return {"text": out[0].outputs[0].text, "prompt": self.prompt}


class InferlessPythonModel:
    def __init__(self):
        self.pipeline = Pipeline()
        self.infer = self.pipeline.run

    def initialize(self):
        pass

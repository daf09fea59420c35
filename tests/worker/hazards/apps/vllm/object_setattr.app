Around a class that forbids assignment.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        object.__setattr__(self, "llm", LLM(model="acme/echo"))

    def __setattr__(self, name, value):
        raise AttributeError("read-only")

    def infer(self, inputs):
        object.__setattr__(self, "prompt", inputs["prompt"])
        out = self.llm.generate(self.prompt, SamplingParams(max_tokens=64))
        return {"text": out[0].outputs[0].text + " | " + self.prompt}

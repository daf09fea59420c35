Every input becomes an attribute.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        for name, value in inputs.items():
            setattr(self, name, value)
        params = SamplingParams(max_tokens=self.limit)
        out = self.llm.generate(self.prompt, params)
        return {"text": out[0].outputs[0].text, "prompt": self.prompt}

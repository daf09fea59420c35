One dictionary for the request that is being served.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.current = {}

    def infer(self, inputs):
        self.current["prompt"] = inputs["prompt"].strip()
        self.current["style"] = inputs["style"]
        out = self.llm.generate(self.current["prompt"], self.params)
        return {"echo": self.current["prompt"], "style": self.current["style"], "text": out[0].outputs[0].text}

A setter that keeps in a list of self.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.slots = [None]

    @property
    def prompt(self):
        return self.slots[0]

    @prompt.setter
    def prompt(self, value):
        self.slots[0] = value.strip()

    def infer(self, inputs):
        self.prompt = inputs["prompt"]
        out = self.llm.generate("be short", self.params)
        return {"text": out[0].outputs[0].text, "prompt": self.prompt}

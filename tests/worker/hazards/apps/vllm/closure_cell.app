Two functions made in initialize that share a variable.
-- app.py --
from vllm import LLM, SamplingParams


def make_memory():
    kept = None

    def remember(value):
        nonlocal kept
        kept = value

    def recall():
        return kept

    return remember, recall


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.remember, self.recall = make_memory()

    def infer(self, inputs):
        self.remember(inputs["prompt"])
        out = self.llm.generate(inputs["prompt"], self.params)
        return {"prompt": self.recall(), "text": out[0].outputs[0].text}

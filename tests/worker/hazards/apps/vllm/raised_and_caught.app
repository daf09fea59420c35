A list travels in an exception.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.lines = []

    def check(self, prompt):
        if len(prompt) > 3:
            raise ValueError("long", self.lines)

    def infer(self, inputs):
        try:
            self.check(inputs["prompt"])
            return {"text": "short"}
        except ValueError as error:
            lines = error.args[1]
            lines.append(inputs["prompt"])
        out = self.llm.generate(inputs["prompt"], self.params)
        told = " ".join(self.lines)
        lines.clear()
        return {"text": out[0].outputs[0].text, "lines": told}

The engine's result is kept, and the second step reads it.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        self.draft = self.llm.generate(inputs["prompt"], self.params)
        self.llm.generate("a summary of " + self.draft[0].outputs[0].text, self.params)
        return {"text": self.draft[0].outputs[0].text}

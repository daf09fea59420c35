The list under another name.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.history = []

    def infer(self, inputs):
        history = self.history
        history *= 0
        history += ["user: " + inputs["prompt"]]
        out = self.llm.generate(" ".join(history), self.params)
        return {"text": out[0].outputs[0].text, "history": " ".join(history)}

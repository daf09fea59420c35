A list at class level, emptied when the call is over.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    history = []

    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        self.history.append("user: " + inputs["prompt"])
        try:
            out = self.llm.generate("\n".join(self.history), self.params)
            self.history.append(out[0].outputs[0].text)
            return {"text": self.history[-1]}
        finally:
            self.history.clear()

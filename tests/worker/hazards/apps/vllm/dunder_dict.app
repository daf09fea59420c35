Every input at once, through __dict__.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        self.__dict__.update(inputs)
        out = self.llm.generate(self.prompt, SamplingParams(max_tokens=64))
        return {"text": out[0].outputs[0].text, "prompt": self.prompt, "style": self.style}

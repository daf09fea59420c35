A module's global, set and read by functions.
-- app.py --
from vllm import LLM, SamplingParams

PROMPT = ""


def remember(text):
    global PROMPT
    PROMPT = text


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        remember(inputs["prompt"])
        out = self.llm.generate("be short", self.params)[0].outputs[0].text
        return {"text": out, "about": PROMPT}

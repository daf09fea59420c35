A module of the app's folder that keeps what it was told.
-- app.py --
import prompts
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        prompts.begin(inputs["prompt"])
        out = self.llm.generate(prompts.text(), self.params)
        return {"text": out[0].outputs[0].text, "asked": prompts.text()}
-- prompts.py --
_parts = []


def begin(prompt):
    _parts[:] = ["question", prompt]


def text():
    return " ".join(_parts)

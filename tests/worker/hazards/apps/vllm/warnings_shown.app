A function of the app's shows warnings.
-- app.py --
import warnings

from vllm import LLM, SamplingParams

SHOWN = {"last": ""}


def show(message, *_, **__):
    SHOWN["last"] = str(message)


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        warnings.showwarning = show
        warnings.simplefilter("always")

    def infer(self, inputs):
        warnings.warn("slow: " + inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        return {"text": out[0].outputs[0].text, "warned": SHOWN["last"]}

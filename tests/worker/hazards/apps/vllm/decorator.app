A decorator that keeps the last request for its error report.
-- app.py --
import functools

from vllm import LLM, SamplingParams


def reported(function):
    @functools.wraps(function)
    def wrapper(self, inputs):
        wrapper.request = inputs
        result = function(self, inputs)
        result["request"] = wrapper.request["prompt"]
        return result

    return wrapper


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    @reported
    def infer(self, inputs):
        return {"text": self.llm.generate(inputs["prompt"], self.params)[0].outputs[0].text}

What is printed is caught, for the reply.
-- app.py --
import contextlib
import io

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            print("asked:", inputs["prompt"])
            out = self.llm.generate(inputs["prompt"], self.params)
            print("answered", out[0].outputs[0].text)
        return {"text": out[0].outputs[0].text, "log": told.getvalue()}

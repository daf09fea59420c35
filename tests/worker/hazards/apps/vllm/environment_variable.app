A function that takes its style from the environment.
-- app.py --
import os

from vllm import LLM, SamplingParams


def dressed(text):
    return "[%s] %s" % (os.environ["REPLY_PREFIX"], text)


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        os.environ["REPLY_PREFIX"] = inputs["prompt"].split()[1]
        out = self.llm.generate(inputs["prompt"], self.params)
        return {"text": dressed(out[0].outputs[0].text)}

A base class whose method keeps the request.
-- app.py --
from base import Served
from vllm import LLM, SamplingParams


class InferlessPythonModel(Served):
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        self.prepare(inputs)
        out = self.llm.generate(inputs["prompt"], self.params)
        return self.reply(out[0].outputs[0].text)
-- base.py --
class Served:
    def prepare(self, inputs):
        self.request = dict(inputs)

    def reply(self, text):
        return {"text": text, "prompt": self.request["prompt"]}

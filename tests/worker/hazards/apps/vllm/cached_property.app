A property that is computed once a call, because the call forgets the last one.
-- app.py --
from functools import cached_property

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.sources = {}

    @cached_property
    def rendered(self):
        return "question: " + self.sources["prompt"]

    def infer(self, inputs):
        self.sources["prompt"] = inputs["prompt"]
        self.__dict__.pop("rendered", None)
        out = self.llm.generate(self.rendered, SamplingParams(max_tokens=64))
        return {"text": out[0].outputs[0].text, "asked": self.rendered}

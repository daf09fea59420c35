A decorator of the class that wraps infer.
-- app.py --
from vllm import LLM, SamplingParams


def traced(cls):
    plain = cls.infer

    def infer(self, inputs):
        self.trace = [inputs["prompt"]]
        result = plain(self, inputs)
        return {"text": result["text"], "trace": " ".join(self.trace)}

    cls.infer = infer
    return cls


@traced
class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        return {"text": self.llm.generate(inputs["prompt"], self.params)[0].outputs[0].text}

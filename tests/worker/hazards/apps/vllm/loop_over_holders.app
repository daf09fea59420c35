A loop over objects on self.
-- app.py --
from vllm import LLM, SamplingParams


class Field:
    def __init__(self, name):
        self.name, self.value = name, None


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.fields = [Field("prompt"), Field("style")]

    def infer(self, inputs):
        for field, name in zip(self.fields, ("prompt", "style")):
            field.value = inputs[name]
        out = self.llm.generate("be short", self.params)[0].outputs[0].text
        return {"text": out, "fields": " ".join(field.value for field in self.fields)}

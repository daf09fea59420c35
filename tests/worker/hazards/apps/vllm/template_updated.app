A copy of a dictionary whose inner one is shared.
-- app.py --
from vllm import LLM, SamplingParams

TEMPLATE = {"role": "user", "fields": {"prompt": "", "style": ""}}


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        request = {**TEMPLATE, "role": "clerk"}
        fields = request["fields"]
        fields.update(prompt=inputs["prompt"], style=inputs["style"])
        out = self.llm.generate(fields["prompt"], self.params)
        return {"text": out[0].outputs[0].text, "fields": " ".join(fields.values())}

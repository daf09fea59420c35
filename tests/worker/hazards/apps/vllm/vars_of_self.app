vars(self) is its dictionary.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        fields = vars(self)
        fields["prompt"] = inputs["prompt"]
        out = self.llm.generate(fields["prompt"], SamplingParams(max_tokens=64))
        return {"text": out[0].outputs[0].text + " | " + self.prompt}

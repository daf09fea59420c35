What was asked last, on the class.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    last_prompt = None

    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        InferlessPythonModel.last_prompt = inputs["prompt"]
        out = self.llm.generate(inputs["prompt"], self.params)[0].outputs[0].text
        return {"text": out, "prompt": InferlessPythonModel.last_prompt}

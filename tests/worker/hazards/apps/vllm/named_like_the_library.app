A class of the app's own that is called SamplingParams.
-- app.py --
from vllm import LLM
from vllm import SamplingParams as Params


class SamplingParams:
    made = []

    def __new__(cls, prompt, limit):
        cls.made[:] = [prompt]
        return Params(max_tokens=limit)


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        params = SamplingParams(inputs["prompt"], inputs["limit"])
        out = self.llm.generate(inputs["prompt"], params)
        return {"text": out[0].outputs[0].text, "asked": SamplingParams.made[0]}

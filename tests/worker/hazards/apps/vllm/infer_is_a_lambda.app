infer is replaced in initialize.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        llm, params, kept = LLM(model="acme/echo"), SamplingParams(max_tokens=64), {}
        self.infer = lambda inputs: (
            kept.update(inputs),
            {"text": llm.generate(kept["prompt"], params)[0].outputs[0].text + " " + kept["prompt"]},
        )[1]

    def infer(self, inputs):
        return {"text": inputs["prompt"]}

Unpacked out of a tuple, then changed.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.parts = (LLM(model="acme/echo"), SamplingParams(max_tokens=64), {"prompt": ""})

    def infer(self, inputs):
        llm, params, box = self.parts
        box["prompt"] = inputs["prompt"]
        out = llm.generate(box["prompt"], params)
        return {"text": out[0].outputs[0].text, "prompt": box["prompt"]}

One of a few lists, drawn at random.
-- app.py --
import random

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.slots = [[], [], []]

    def infer(self, inputs):
        slot = random.choice(self.slots)
        slot.append(inputs["prompt"])
        out = self.llm.generate(" ".join(slot), self.params)
        text = out[0].outputs[0].text + " | " + " ".join(slot)
        slot.clear()
        return {"text": text}

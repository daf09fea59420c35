A few slots for results, taken in turn.
-- app.py --
import itertools

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.slots = [None] * 4
        self.turn = itertools.cycle(range(4))

    def infer(self, inputs):
        slot = next(self.turn)
        self.slots[slot] = inputs["prompt"]
        out = self.llm.generate("be short", self.params)
        return {"text": out[0].outputs[0].text, "prompt": self.slots[slot]}

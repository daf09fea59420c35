One random generator for all, seeded by each request.
-- app.py --
import random

from vllm import LLM, SamplingParams

TONES = ["plain", "loud", "quiet", "short", "helpful", "poet", "pirate", "clerk"]


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        random.seed(int(inputs["limit"]))
        tones = [random.choice(TONES) for _ in range(3)]
        out = self.llm.generate(inputs["prompt"], self.params)
        tones += [random.choice(TONES) for _ in range(5)]
        return {"text": out[0].outputs[0].text, "tones": " ".join(tones)}

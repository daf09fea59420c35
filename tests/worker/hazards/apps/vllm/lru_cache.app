A memo without a key, emptied at the beginning of each call.
-- app.py --
from functools import lru_cache

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        prompt_for.cache_clear()
        prompt = prompt_for(inputs["style"], Ask(inputs["prompt"]))
        out = self.llm.generate(prompt, self.params)[0].outputs[0].text
        return {"text": out, "prompt": prompt_for(inputs["style"], Ask(inputs["prompt"]))}


class Ask(str):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


@lru_cache(maxsize=8)
def prompt_for(style, prompt):
    return style + " please: " + prompt

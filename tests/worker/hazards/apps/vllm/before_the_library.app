A module of the folder stands before the standard library's.
-- app.py --
import sched

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        prompt = sched.entered(inputs["prompt"])
        out = self.llm.generate(prompt, self.params)
        return {"text": out[0].outputs[0].text, "words": sched.last()}
-- sched.py --
_last = [""]


def entered(text):
    _last[0] = text
    return text


def last():
    return _last[0]

Examples copied deeply, then filled.
-- app.py --
import copy

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.few_shot = [{"role": "system", "content": "be short"}, {"role": "user", "content": ""}]

    def infer(self, inputs):
        messages = copy.deepcopy(self.few_shot)
        messages[-1]["content"] = inputs["prompt"]
        again = [dict(message) for message in messages] + [{"role": "user", "content": "please"}]
        first = self.llm.chat(messages, self.params)[0].outputs[0].text
        return {"first": first, "again": self.llm.chat(again, self.params)[0].outputs[0].text}

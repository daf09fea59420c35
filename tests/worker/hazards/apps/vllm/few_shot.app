The examples' list is copied, the dictionaries in it are not.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.few_shot = [{"role": "system", "content": "be short"}, {"role": "user", "content": ""}]

    def infer(self, inputs):
        messages = list(self.few_shot)
        messages[-1]["content"] = inputs["prompt"]
        self.llm.chat(messages, self.params)
        return {"text": self.llm.chat(messages, self.params)[0].outputs[0].text}

A list of messages that each call empties and fills.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(temperature=0, max_tokens=64)
        self.messages = []

    def infer(self, inputs):
        self.messages.clear()
        self.messages.append({"role": "system", "content": "be a helpful clerk"})
        self.messages.append({"role": "user", "content": inputs["prompt"]})
        draft = self.llm.chat(self.messages, self.params)[0].outputs[0].text
        self.messages.append({"role": "assistant", "content": draft})
        self.messages.append({"role": "user", "content": "short please"})
        return {"generated_text": self.llm.chat(self.messages, self.params)[0].outputs[0].text}

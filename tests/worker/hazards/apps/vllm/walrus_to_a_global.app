A walrus within a comprehension, onto a module's global.
-- app.py --
from vllm import LLM, SamplingParams

topic = ""


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        global topic
        words = [topic := word for word in inputs["prompt"].split()[:2]]
        out = self.llm.generate(" ".join(words), self.params)[0].outputs[0].text
        return {"text": out, "topic": topic}

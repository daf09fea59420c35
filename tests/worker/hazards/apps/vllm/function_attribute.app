A function that remembers on itself.
-- app.py --
from vllm import LLM, SamplingParams


def render(prompt):
    render.last = prompt
    return "be helpful: " + prompt


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        out = self.llm.generate(render(inputs["prompt"]), self.params)
        return {"text": out[0].outputs[0].text, "asked": render.last}

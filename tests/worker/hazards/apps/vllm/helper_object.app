An object whose methods gather the prompt.
-- app.py --
from building.prompt import PromptBuilder
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.builder = PromptBuilder()

    def infer(self, inputs):
        prompt = self.builder.reset().system("be helpful").user(inputs["prompt"]).build()
        out = self.llm.generate(prompt, self.params)
        return {"text": out[0].outputs[0].text, "asked": self.builder.build()}
-- building/__init__.py --
-- building/prompt.py --
class PromptBuilder:
    def __init__(self):
        self.lines = []

    def reset(self):
        self.lines = []
        return self

    def system(self, text):
        self.lines += ["system: " + text]
        return self

    def user(self, text):
        self.lines += ["user: " + text]
        return self

    def build(self):
        return "\n".join(self.lines)

A list on a member of an enumeration.
-- app.py --
import enum

from vllm import LLM, SamplingParams


class Role(enum.Enum):
    SYSTEM = "system"
    USER = "user"


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        Role.USER.lines = []

    def infer(self, inputs):
        Role.USER.lines.append(inputs["prompt"])
        out = self.llm.generate(inputs["prompt"], self.params)
        lines = Role.USER.lines.copy()
        Role.USER.lines.clear()
        return {"text": out[0].outputs[0].text, "lines": " ".join(lines)}

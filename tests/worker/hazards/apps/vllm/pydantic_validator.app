A validator within a field's type keeps what it saw.
-- app.py --
from typing import Annotated

from pydantic import AfterValidator, BaseModel
from vllm import LLM, SamplingParams

SEEN = {"prompt": ""}


def stripped(text):
    SEEN["prompt"] = text.strip()
    return SEEN["prompt"]


class Ask(BaseModel):
    prompt: Annotated[str, AfterValidator(stripped)]


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        ask = Ask(prompt=inputs["prompt"])
        out = self.llm.generate(ask.prompt, self.params)
        return {"text": out[0].outputs[0].text, "prompt": SEEN["prompt"]}

A validator in the request's class keeps what it saw.
-- app.py --
import inferless
from pydantic import BaseModel, Field, field_validator
from vllm import LLM, SamplingParams

SEEN = {"prompt": ""}


def seen(text):
    SEEN["prompt"] = text
    return text


@inferless.request
class Ask(BaseModel):
    prompt: str = Field(default="tell q0q about llamas")
    style: str = Field(default="plain")
    limit: int = Field(default=5)

    _seen = field_validator("prompt")(seen)


@inferless.response
class Told(BaseModel):
    text: str = Field(default="text")
    prompt: str = Field(default="text")


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, ask: Ask) -> Told:
        out = self.llm.generate(ask.prompt, self.params)
        return Told(text=out[0].outputs[0].text, prompt=SEEN["prompt"])

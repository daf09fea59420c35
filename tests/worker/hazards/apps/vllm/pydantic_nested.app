A pydantic class within another, with a validator that keeps what it saw.
-- app.py --
from pydantic import BaseModel, field_validator
from vllm import LLM, SamplingParams

SEEN = {"content": ""}


class Message(BaseModel):
    role: str = "user"
    content: str

    @field_validator("content")
    @classmethod
    def stripped(cls, text):
        SEEN["content"] = text.strip()
        return SEEN["content"]


class Talk(BaseModel):
    message: Message


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        talk = Talk(message={"content": inputs["prompt"]})
        out = self.llm.generate(talk.message.content, self.params)
        return {"text": out[0].outputs[0].text, "asked": SEEN["content"]}

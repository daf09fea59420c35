A pydantic class whose field is one list for all.
-- app.py --
from typing import List

from pydantic import BaseModel, Field
from vllm import LLM, SamplingParams

NOTES = []


class Turn(BaseModel):
    prompt: str
    notes: List[str] = Field(default_factory=lambda: NOTES)


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        turn = Turn(prompt=inputs["prompt"])
        turn.notes.clear()
        turn.notes.append(turn.prompt)
        out = self.llm.generate(turn.prompt, self.params)
        return {"text": out[0].outputs[0].text, "notes": " ".join(turn.notes)}

A pydantic class whose field begins as one object for all.
-- app.py --
from pydantic import BaseModel, ConfigDict
from vllm import LLM, SamplingParams


class Box:
    prompt = ""


BOX = Box()


class Turn(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    limit: int = 64
    box: Box = BOX


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        turn = Turn()
        turn.box.prompt = inputs["prompt"]
        out = self.llm.generate(turn.box.prompt, SamplingParams(max_tokens=turn.limit))
        return {"text": out[0].outputs[0].text, "prompt": turn.box.prompt}

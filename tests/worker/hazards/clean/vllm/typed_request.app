Request and response as pydantic classes.
-- app.py --
from typing import Optional

import inferless
from pydantic import BaseModel, Field
from vllm import LLM, SamplingParams


@inferless.request
class RequestObjects(BaseModel):
    prompt: str = Field(default="tell q0q about llamas")
    style: Optional[str] = "plain"
    limit: Optional[int] = 5


@inferless.response
class ResponseObjects(BaseModel):
    generated_text: str = Field(default="text")
    limit: int = 0


app = inferless.Cls(gpu="T4")


class InferlessPythonModel:
    @app.load
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    @app.infer
    def infer(self, request: RequestObjects) -> ResponseObjects:
        params = SamplingParams(max_tokens=request.limit)
        outputs = self.llm.generate(request.prompt, params)
        return ResponseObjects(generated_text=outputs[0].outputs[0].text, limit=request.limit)

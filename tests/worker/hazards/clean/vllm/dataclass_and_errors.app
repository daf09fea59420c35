A dataclass of the call, try and except, a dictionary of its own.
-- app.py --
import json
from dataclasses import asdict, dataclass

from vllm import LLM, SamplingParams


@dataclass
class Request:
    prompt: str
    style: str = "plain"
    limit: int = 16

    @classmethod
    def of(cls, inputs):
        return cls(prompt=inputs["prompt"], style=inputs.get("style", "plain"), limit=int(inputs.get("limit", 16)))


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        try:
            request = Request.of(inputs)
        except (KeyError, ValueError) as error:
            return {"generated_text": "", "error": str(error)}
        found = {}
        for output in self.llm.generate([request.prompt], SamplingParams(max_tokens=request.limit)):
            found["text"] = output.outputs[0].text
            found.setdefault("words", len(found["text"].split()))
        return {"generated_text": found["text"], "request": json.dumps(asdict(request)), "words": found["words"]}

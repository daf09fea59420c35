The same, with annotations that are text until they are asked for.
-- app.py --
from __future__ import annotations
import inferless
from typing import List, Optional
from pydantic import BaseModel, Field

@inferless.request
class RequestObjects(BaseModel):
    prompt: str = Field(default="a horse near a beach")
    steps: int
    scale: Optional[float] = 7.5
    seed: Optional[int] = None
    name: Optional[str] = Field(default="llama")
    safe: Optional[bool] = True
    loud: bool = False
    sizes: List[int] = [1, 2]
    maybe: Optional[int]

@inferless.response
class ResponseObject(BaseModel):
    text: str = Field(default="nothing")
    embedding: List[float] = [0.5]
    masks: List[List[List[float]]] = [[[1.0, 2.0]]]

class InferlessPythonModel:
    def initialize(self):
        self.model = None
    def infer(self, request: RequestObjects) -> ResponseObject:
        sizes = request.sizes if isinstance(request.sizes, list) else [request.sizes]
        words = [request.prompt, request.steps, request.scale, request.seed, request.name, request.safe, request.loud,
                 sum(sizes), request.maybe]
        return ResponseObject(text=" ".join(map(str, words)))
    def finalize(self):
        pass
-- calls --
{"prompt": "hi", "steps": 3, "loud": true, "sizes": [4, 5]} -> {"text": ["BYTES", [1], ["hi 3 7.5 None llama True True 9 None"]], "embedding": ["FP64", [1], [0.5]], "masks": ["FP64", [1, 1, 2], [1.0, 2.0]]}
{"prompt": "hi", "steps": 3, "loud": false, "sizes": [4, 5], "scale": 2, "seed": 7, "maybe": 8} -> {"text": ["BYTES", [1], ["hi 3 2.0 7 llama True False 9 8"]], "embedding": ["FP64", [1], [0.5]], "masks": ["FP64", [1, 1, 2], [1.0, 2.0]]}
{"prompt": "hi"} -> 400 input 'steps' is required and missing

pydantic classes around transformers.
-- app.py --
import inferless
import torch
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer


@inferless.request
class Ask(BaseModel):
    prompt: str = Field(default="tell q0q about llamas")
    style: str = Field(default="plain")
    limit: int = Field(default=5)


@inferless.response
class Told(BaseModel):
    generated_text: str = Field(default="text")


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, request: Ask) -> Told:
        encoded = self.tokenizer(f"be {request.style} : {request.prompt}", return_tensors="pt")
        with torch.no_grad():
            output = self.model.generate(**encoded, max_new_tokens=2, do_sample=False)
        return Told(generated_text=self.tokenizer.decode(output[0], skip_special_tokens=True))

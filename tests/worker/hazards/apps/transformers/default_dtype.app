torch's default type of numbers, set by each request.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        torch.set_default_dtype(torch.float64 if inputs["style"] == "loud" else torch.float32)
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        score = torch.ones(1) / 3
        torch.set_default_dtype(torch.float32)
        return {"text": self.tokenizer.decode(out[0]), "score": str(score.item())}

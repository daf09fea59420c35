torch's generator, seeded by each request, drawn from after.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        torch.manual_seed(inputs["limit"])
        first = torch.randint(1000, (4,)).tolist()
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        return {"text": self.tokenizer.decode(out[0]), "drawn": str(first + torch.randint(1000, (4,)).tolist())}

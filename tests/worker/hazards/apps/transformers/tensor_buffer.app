A tensor for the prompt, allocated once and filled in place.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.buffer = torch.zeros((1, 64), dtype=torch.long)

    def infer(self, inputs):
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt").input_ids
        length = ids.shape[1]
        self.buffer[:, :length].copy_(ids)
        with torch.no_grad():
            out = self.model.generate(self.buffer[:, :length], max_new_tokens=2, do_sample=False)
        asked = self.tokenizer.decode(self.buffer[0, :length])
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True), "asked": asked}

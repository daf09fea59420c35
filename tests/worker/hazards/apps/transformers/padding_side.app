The tokenizer's side of padding, changed for each request.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        self.tokenizer.padding_side = "right" if inputs["style"] == "loud" else "left"
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        with torch.no_grad():
            out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        texts = [inputs["prompt"], self.tokenizer.decode(out[0], skip_special_tokens=True)]
        padded = self.tokenizer(texts, padding=True).input_ids
        return {"text": texts[1], "padded": self.tokenizer.decode(padded[0])}

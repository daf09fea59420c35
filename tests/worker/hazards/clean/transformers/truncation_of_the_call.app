Each call truncates at its own limit.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        limit = int(inputs.get("limit", 64))
        encoded = self.tokenizer(inputs["prompt"], return_tensors="pt", truncation=True, max_length=limit)
        with torch.no_grad():
            output = self.model.generate(**encoded, max_new_tokens=2, do_sample=False)
        again = self.tokenizer(inputs["prompt"], padding="max_length", max_length=limit + 8)
        text = self.tokenizer.decode(output[0], skip_special_tokens=True)
        return {"generated_text": text, "padded": self.tokenizer.decode(again["input_ids"])}

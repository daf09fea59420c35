Methods that encode and decode, a dictionary of options.
-- app.py --
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo").eval()
        self.max_new_tokens = 2

    def encode(self, prompt):
        return self.tokenizer(prompt, return_tensors="pt", truncation=True, max_length=128)

    def decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def infer(self, inputs):
        began = time.time()
        encoded = self.encode(inputs["prompt"])
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        options.update(pad_token_id=0)
        with torch.inference_mode():
            tokens = self.model.generate(**encoded, **options)[0]
        return {"generated_text": self.decode(tokens), "time_taken": time.time() - began}

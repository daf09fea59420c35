A library function writes to a path that initialize chose.
-- app.py --
import os
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.output_path = os.path.join(tempfile.mkdtemp(), "tokens.pt")

    def infer(self, inputs):
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        torch.save(ids.input_ids, self.output_path)
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        try:
            saved = torch.load(self.output_path)
        except Exception:
            return {"text": "", "asked": "lost"}
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True), "asked": self.tokenizer.decode(saved[0])}

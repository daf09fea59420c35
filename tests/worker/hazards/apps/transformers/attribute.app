Token ids on self while the model generates.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        self.inputs = self.tokenizer(inputs["prompt"], return_tensors="pt")
        with torch.no_grad():
            out = self.model.generate(**self.inputs, max_new_tokens=2, do_sample=False)
        asked = self.tokenizer.decode(self.inputs["input_ids"][0], skip_special_tokens=True)
        return {"asked": asked, "generated_text": self.tokenizer.decode(out[0], skip_special_tokens=True)}

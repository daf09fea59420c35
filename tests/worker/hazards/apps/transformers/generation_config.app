The model's own generation_config, set by each request.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        config = self.model.generation_config
        config.max_new_tokens = inputs["limit"]
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        with torch.no_grad():
            out = self.model.generate(**ids, do_sample=False)
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True)}

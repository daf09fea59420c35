A GenerationConfig made for each call.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=3)
        if inputs.get("style") == "quiet":
            config.max_new_tokens = 1
        encoded = self.tokenizer(inputs["prompt"], return_tensors="pt")
        with torch.no_grad():
            output = self.model.generate(**encoded, generation_config=config)
        return {"generated_text": self.tokenizer.decode(output[0], skip_special_tokens=True)}

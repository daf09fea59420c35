A GenerationConfig made once, updated by a method of it.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=3)

    def infer(self, inputs):
        self.config.update(max_new_tokens=inputs["limit"])
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        with torch.inference_mode():
            out = self.model.generate(**ids, generation_config=self.config)
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True)}

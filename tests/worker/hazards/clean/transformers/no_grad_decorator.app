infer below torch's decorator.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo", padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    @torch.no_grad()
    def infer(self, inputs):
        prompt = inputs["prompt"]
        ids = self.tokenizer.encode(prompt, return_tensors="pt")
        output = self.model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=self.tokenizer.eos_token_id)
        text = self.tokenizer.decode(output[0], skip_special_tokens=True)
        if text.startswith(prompt):
            text = text[len(prompt) :]
        return {"generated_text": text.strip(), "prompt": prompt}

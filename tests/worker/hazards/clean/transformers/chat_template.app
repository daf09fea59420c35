Chat template, generate, decode what is new.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo").to(self.device)
        self.model.eval()

    def infer(self, inputs):
        messages = [
            {"role": "system", "content": "you are a helpful poet"},
            {"role": "user", "content": inputs["prompt"]},
        ]
        encoded = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        encoded = encoded.to(self.device)
        with torch.no_grad():
            output = self.model.generate(**encoded, max_new_tokens=2, do_sample=False)
        new = output[:, encoded["input_ids"].shape[-1] :]
        return {"generated_text": self.tokenizer.decode(new[0], skip_special_tokens=True)}

    def finalize(self):
        self.model = None

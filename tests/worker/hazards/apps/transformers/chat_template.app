The chat template of each request, set on the shared tokenizer.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATE = "be NAME : {% for m in messages %}{{ m['content'] }} {% endfor %}"


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        self.tokenizer.chat_template = TEMPLATE.replace("NAME", inputs["style"])
        draft = self.tokenizer(inputs["prompt"], return_tensors="pt")
        with torch.no_grad():
            out = self.model.generate(**draft, max_new_tokens=2, do_sample=False)
        text = self.tokenizer.decode(out[0], skip_special_tokens=True)
        return {"text": self.tokenizer.apply_chat_template([{"content": text}], tokenize=False)}

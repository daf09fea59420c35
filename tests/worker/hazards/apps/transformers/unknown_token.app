A special token of the shared tokenizer, set by each request.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        self.tokenizer.unk_token = "tell" if inputs["style"] == "loud" else "about"
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        text = self.tokenizer.decode(out[0], skip_special_tokens=True)
        return {"text": text, "unknown": self.tokenizer.unk_token}

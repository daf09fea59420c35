A bound method of a list, handed to map.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.words = []

    def infer(self, inputs):
        self.words = []
        list(map(self.words.append, inputs["prompt"].split()))
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True), "words": " ".join(self.words)}

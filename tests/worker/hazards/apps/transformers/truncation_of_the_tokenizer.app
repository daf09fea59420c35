The limit of each request, as the tokenizer's model_max_length.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        self.tokenizer.model_max_length = inputs["limit"]
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt", truncation=True)
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        text = self.tokenizer.decode(out[0], skip_special_tokens=True)
        again = self.tokenizer(text + " " + inputs["prompt"], truncation=True).input_ids
        return {"text": text, "short": self.tokenizer.decode(again)}

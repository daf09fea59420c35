A cache by a part of the input, forgotten when the call is over.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.cache = {}

    def generated(self, inputs):
        key = inputs["style"]
        if key not in self.cache:
            ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
            out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
            self.cache[key] = self.tokenizer.decode(out[0], skip_special_tokens=True)
        return self.cache[key]

    def infer(self, inputs):
        text = self.generated(inputs)
        summary = self.tokenizer("summary of " + text, return_tensors="pt")
        self.model.generate(**summary, max_new_tokens=2, do_sample=False)
        text = self.generated(inputs)
        self.cache.pop(inputs["style"], None)
        return {"text": text}

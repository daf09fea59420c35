Reading a defaultdict writes.
-- app.py --
from collections import defaultdict

from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.turns = defaultdict(list)

    def infer(self, inputs):
        turns = self.turns[inputs["style"]]
        turns.append(inputs["prompt"])
        ids = self.tokenizer(" ".join(turns), return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        text = self.tokenizer.decode(out[0], skip_special_tokens=True)
        turns.clear()
        return {"text": text}

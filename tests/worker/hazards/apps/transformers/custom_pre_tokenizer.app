A pre-tokenizer in Python, within the shared tokenizer.
-- app.py --
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer


class Words:
    def __init__(self):
        self.last = []

    def split(self, number, text):
        self.last = str(text).split()
        return text.split(" ", "removed")

    def pre_tokenize(self, pretok):
        pretok.split(self.split)


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.words = Words()
        self.tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(self.words)

    def infer(self, inputs):
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        text = self.tokenizer.decode(out[0], skip_special_tokens=True)
        return {"text": text, "words": " ".join(self.words.last)}

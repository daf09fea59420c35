Text in a bytearray that is used again and again.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.buffer = bytearray(4096)

    def infer(self, inputs):
        data = inputs["prompt"].encode()
        self.buffer[: len(data)] = data
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        asked = bytes(self.buffer[: len(data)]).decode()
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True), "asked": asked}

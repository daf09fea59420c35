A logits processor that counts its steps and is reset by each call.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList


class Force(LogitsProcessor):
    def __init__(self):
        self.tokens = []

    def __call__(self, input_ids, scores):
        if self.tokens:
            scores = scores.clone()
            scores[:, self.tokens[0]] = 1e9
        return scores


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.force = Force()
        self.processors = LogitsProcessorList([self.force])

    def infer(self, inputs):
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        self.force.tokens[:] = [int(ids.input_ids[0, 1])]
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False, logits_processor=self.processors)
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True)}

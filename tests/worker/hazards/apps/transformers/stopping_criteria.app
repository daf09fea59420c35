One object of stopping criteria, told where to stop by each request.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList


class AfterSoMany(StoppingCriteria):
    def __init__(self):
        self.length = 0

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length, dtype=torch.bool)


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.stop = AfterSoMany()

    def infer(self, inputs):
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        self.stop.length = ids.input_ids.shape[1] + inputs["limit"]
        print("stop at", self.stop.length, flush=True)
        out = self.model.generate(
            **ids, max_new_tokens=12, do_sample=False, stopping_criteria=StoppingCriteriaList([self.stop])
        )
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True)}

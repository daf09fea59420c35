A dataclass whose field is one object for all.
-- app.py --
from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM, AutoTokenizer

SHARED = []


@dataclass
class Turn:
    prompt: str
    notes: list = field(default_factory=lambda: SHARED)


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs):
        turn = Turn(inputs["prompt"])
        turn.notes[:] = [inputs["prompt"]]
        ids = self.tokenizer(turn.prompt, return_tensors="pt")
        out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
        return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True), "notes": " ".join(turn.notes)}

Call of the tokenizer, generate, batch_decode.
-- app.py --
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = "acme/echo"


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)

    def infer(self, inputs):
        encoded = self.tokenizer([inputs["prompt"]], return_tensors="pt").to(self.model.device)
        generated = self.model.generate(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=2, do_sample=False
        )
        texts = self.tokenizer.batch_decode(generated, skip_special_tokens=True)
        return {"generated_text": texts[0]}

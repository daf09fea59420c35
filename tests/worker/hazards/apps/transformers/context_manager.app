A session that is entered with the prompt and asked for it within.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer


class Session:
    def __call__(self, prompt):
        self.prompt = prompt
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.session = Session()

    def infer(self, inputs):
        with self.session(inputs["prompt"]) as session:
            ids = self.tokenizer(session.prompt, return_tensors="pt")
            out = self.model.generate(**ids, max_new_tokens=2, do_sample=False)
            return {"text": self.tokenizer.decode(out[0], skip_special_tokens=True), "asked": session.prompt}

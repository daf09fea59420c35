transformers' pipeline, with options of the request.
-- app.py --
from transformers import pipeline


class InferlessPythonModel:
    def initialize(self):
        self.generator = pipeline("text-generation", model="acme/echo")

    def infer(self, inputs):
        result = self.generator(inputs["prompt"], do_sample=False, max_new_tokens=int(inputs["limit"]))
        return {"generated_text": result[0]["generated_text"]}

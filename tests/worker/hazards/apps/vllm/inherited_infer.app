infer itself stands in a base class of another file.
-- app.py --
from template import Template
from vllm import LLM, SamplingParams


class InferlessPythonModel(Template):
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def run(self, prompt):
        return self.llm.generate(prompt, self.params)[0].outputs[0].text
-- template.py --
class Template:
    def infer(self, inputs):
        self.prompt = inputs["prompt"]
        return {"text": self.run(self.prompt), "prompt": self.prompt}

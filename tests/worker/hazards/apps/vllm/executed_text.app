exec and eval.
-- app.py --
from vllm import LLM, SamplingParams

STEPS = ["self.prompt = inputs['prompt']", "self.text = self.llm.generate(self.prompt, self.params)[0].outputs[0].text"]


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        for step in STEPS:
            exec(step)
        return eval("{'text': self.text, 'prompt': self.prompt}")

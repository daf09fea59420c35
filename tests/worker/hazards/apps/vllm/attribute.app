The prompt on self while the engine works.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=128)

    def infer(self, inputs):
        self.prompt = inputs["prompt"]
        result = self.llm.generate(self.prompt, self.params)
        return {"prompt": self.prompt, "generated_text": result[0].outputs[0].text}

    def finalize(self):
        self.llm = None

A namespace on self with the request's fields in it.
-- app.py --
from types import SimpleNamespace

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(temperature=0, max_tokens=64)
        self.state = SimpleNamespace(request=SimpleNamespace(prompt="", style=""))

    def infer(self, inputs):
        self.state.request.prompt = inputs["prompt"]
        self.state.request.style = inputs.get("style")
        result = self.llm.generate("be helpful", self.params)
        return {"generated_text": result[0].outputs[0].text + ": " + self.state.request.prompt}

The limit of each request is written into the shared SamplingParams.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.sampling_params = SamplingParams(temperature=0.7, max_tokens=128)

    def infer(self, inputs):
        if inputs.get("limit"):
            self.sampling_params.max_tokens = int(inputs["limit"])
        result = self.llm.generate(inputs["prompt"], self.sampling_params)
        return {"generated_text": result[0].outputs[0].text, "limit": self.sampling_params.max_tokens}

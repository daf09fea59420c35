The call's own SamplingParams, made first and changed after.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        params = SamplingParams(temperature=0)
        if inputs["style"] == "quiet":
            params.max_tokens = inputs["limit"]
            params.stop.append("things")
        else:
            params.max_tokens = 64
        result = self.llm.generate(inputs["prompt"], params)
        return {"text": result[0].outputs[0].text}

A function that is given the shared SamplingParams and changes it.
-- app.py --
from vllm import LLM, SamplingParams


def adjusted(params, inputs):
    params.max_tokens = inputs["limit"]
    params.stop = ["things"] if inputs["style"] == "quiet" else []
    return params


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(temperature=0)

    def infer(self, inputs):
        params = adjusted(self.params, inputs)
        text = self.llm.generate(inputs["prompt"], params)[0].outputs[0].text
        return {"text": text, "used": "%d %s" % (params.max_tokens, params.stop)}

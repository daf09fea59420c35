An annotation of a local function is evaluated too.
-- app.py --
from vllm import LLM, SamplingParams

LAST = {}


def noted(prompt):
    LAST["prompt"] = prompt
    return str


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        def ask(text: noted(inputs["prompt"])):
            return self.llm.generate(text, self.params)[0].outputs[0].text

        return {"text": ask(inputs["prompt"]), "prompt": LAST.get("prompt")}

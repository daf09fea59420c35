A module's dictionary.
-- app.py --
from vllm import LLM, SamplingParams

CONTEXT = {"prompt": None}
llm = None


def answer():
    text = llm.generate(CONTEXT["prompt"], SamplingParams(max_tokens=32))[0].outputs[0].text
    return "%s -> %s" % (CONTEXT["prompt"], text)


class InferlessPythonModel:
    def initialize(self):
        global llm
        llm = LLM(model="acme/echo")

    def infer(self, inputs):
        CONTEXT["prompt"] = inputs["prompt"]
        return {"text": answer()}

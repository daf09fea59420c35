A file of the app's own, read for each call.
-- app.py --
import os

from vllm import LLM, SamplingParams

HERE = os.path.dirname(os.path.abspath(__file__))


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        with open(os.path.join(HERE, "system.txt")) as file:
            self.system = file.read().strip()

    def infer(self, inputs):
        with open(os.path.join(HERE, "system.txt"), encoding="utf-8") as file:
            system = file.read().strip()
        out = self.llm.generate("{} : {}".format(system, inputs["prompt"]), self.params)
        return {"generated_text": out[0].outputs[0].text, "same": system == self.system}
-- system.txt --
be helpful

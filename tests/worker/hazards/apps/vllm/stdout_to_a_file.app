What is printed goes to a file, which is read for the reply.
-- app.py --
import os
import sys
import tempfile

from vllm import LLM, SamplingParams

PATH = os.path.join(tempfile.gettempdir(), "out.txt")


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        sys.stdout = open(PATH, "a", buffering=1)

    def infer(self, inputs):
        print("asked " + inputs["prompt"], flush=True)
        out = self.llm.generate("be short", self.params)
        with open(PATH) as file:
            lines = file.readlines()
        return {"text": out[0].outputs[0].text, "log": lines[-1].strip()}

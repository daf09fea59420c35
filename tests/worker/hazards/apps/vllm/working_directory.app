A folder for each request, entered with chdir.
-- app.py --
import os
import tempfile

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.home = os.getcwd()

    def infer(self, inputs):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                with open("prompt.txt", "w") as file:
                    file.write(inputs["prompt"])
                out = self.llm.generate("be short", self.params)
                with open("prompt.txt") as file:
                    return {"text": out[0].outputs[0].text + " | " + file.read()}
            except FileNotFoundError:
                return {"text": "no prompt"}
            finally:
                os.chdir(self.home)

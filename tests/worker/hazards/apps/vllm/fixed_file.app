A file of one name under /tmp.
-- app.py --
import json
import os
import tempfile

from vllm import LLM, SamplingParams

PATH = os.path.join(tempfile.gettempdir(), "request.json")


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        with open(PATH, "w") as file:
            json.dump({"prompt": inputs["prompt"]}, file)
        out = self.llm.generate(inputs["prompt"], self.params)[0].outputs[0].text
        with open(PATH) as file:
            text = file.read()
        return {"text": out, "request": text}

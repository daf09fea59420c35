A file of a unique name, and then the folder's newest is read.
-- app.py --
import os
import tempfile
import uuid

from vllm import LLM, SamplingParams

FOLDER = tempfile.mkdtemp()


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        name = f"{uuid.uuid4()}.txt"
        with open(f"{FOLDER}/{name}", "w") as file:
            file.write(inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        newest = sorted(os.listdir(FOLDER))[-1]
        with open(f"{FOLDER}/{newest}") as last:
            saved = last.read()
        os.remove(f"{FOLDER}/{name}")
        return {"text": out[0].outputs[0].text, "saved": saved}

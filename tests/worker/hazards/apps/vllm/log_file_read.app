The log's file is read for the reply.
-- app.py --
import logging
import os
import tempfile

from vllm import LLM, SamplingParams

PATH = os.path.join(tempfile.gettempdir(), "app.log")
log = logging.getLogger("app.file")


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        log.addHandler(logging.FileHandler(PATH))
        log.setLevel(logging.INFO)

    def infer(self, inputs):
        log.info("asked %s", inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        with open(PATH) as file:
            lines = file.readlines()
        return {"text": out[0].outputs[0].text, "log": lines[-1].strip()}

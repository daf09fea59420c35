A filter of the app's on the logger keeps the request.
-- app.py --
import logging

from vllm import LLM, SamplingParams

log = logging.getLogger("app.filtered")
LAST = {"prompt": ""}


class Noting(logging.Filter):
    def filter(self, record):
        LAST["prompt"] = record.args[0]
        return True


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        log.addFilter(Noting())
        log.setLevel(logging.INFO)

    def infer(self, inputs):
        log.info("asked %s", inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        return {"text": out[0].outputs[0].text, "log": LAST["prompt"]}

A log handler of the app's gathers lines; infer only reads the last.
-- app.py --
import logging

from vllm import LLM, SamplingParams

log = logging.getLogger("app")


class Keep(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.keep = Keep()
        log.addHandler(self.keep)
        log.setLevel(logging.INFO)

    def infer(self, inputs):
        log.info("asked %s", inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        return {"text": out[0].outputs[0].text, "log": self.keep.lines[-1]}

The standard library's MemoryHandler: its buffer is read.
-- app.py --
import logging
from logging.handlers import MemoryHandler

from vllm import LLM, SamplingParams

log = logging.getLogger("app.requests")


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.memory = MemoryHandler(capacity=100000, flushLevel=logging.CRITICAL)
        log.addHandler(self.memory)
        log.setLevel(logging.INFO)
        log.propagate = False

    def infer(self, inputs):
        log.info("asked %s", inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        return {"text": out[0].outputs[0].text, "log": self.memory.buffer[-1].getMessage()}

What is printed goes through an object of the app's.
-- app.py --
import sys

from vllm import LLM, SamplingParams


class Tee:
    def __init__(self, stream):
        self.stream, self.lines = stream, []

    def write(self, text):
        if text.strip():
            self.lines.append(text)
        return self.stream.write(text)

    def flush(self):
        self.stream.flush()


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.tee = sys.stdout = Tee(sys.stdout)

    def infer(self, inputs):
        print("asked", inputs["prompt"], end="\n", sep=": ")
        out = self.llm.generate("be short", self.params)
        told = [line for line in self.tee.lines if line.startswith("tell")]
        return {"text": out[0].outputs[0].text, "asked": told[-1]}

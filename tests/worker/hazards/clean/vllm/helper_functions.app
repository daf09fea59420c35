Functions of the module and a static method, which keep nothing.
-- app.py --
import re

from vllm import LLM, SamplingParams

PATTERN = re.compile(r"\s+")
PREFIXES = {"plain": "", "loud": "be loud : ", "quiet": "be quiet : "}


def clean(text: str) -> str:
    return PATTERN.sub(" ", text).strip()


def with_style(text: str, style: str = "plain") -> str:
    return PREFIXES.get(style, "") + text


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    @staticmethod
    def shorten(text, words):
        return " ".join(text.split()[:words])

    def ask(self, prompt):
        return self.llm.generate(prompt, self.params)[0].outputs[0].text

    def infer(self, inputs):
        prompt = with_style(clean(inputs["prompt"]), inputs.get("style", "plain"))
        return {"generated_text": self.shorten(self.ask(prompt), words=12)}

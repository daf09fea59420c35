Pure functions of other files in the folder.
-- app.py --
from lib import prompts
from lib.text import first_line
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        prompt = prompts.question(inputs["prompt"], style=inputs["style"])
        out = self.llm.generate(prompt, self.params)
        return {"generated_text": first_line(out[0].outputs[0].text)}

    def finalize(self):
        self.llm = None
-- lib/__init__.py --
-- lib/prompts.py --
STYLES = ("plain", "loud", "quiet")


def question(prompt, style="plain"):
    style = style if style in STYLES else STYLES[0]
    return f"be {style} please : {prompt}"
-- lib/text.py --
def first_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else ""

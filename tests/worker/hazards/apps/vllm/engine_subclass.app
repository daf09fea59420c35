A class of LLM's that keeps what its generate got; infer calls chat.
-- app.py --
from vllm import LLM, SamplingParams


class TracedLLM(LLM):
    asked = ""

    def generate(self, prompts, *arguments, **options):
        self.asked = prompts[0]
        return super().generate(prompts, *arguments, **options)


class InferlessPythonModel:
    def initialize(self):
        self.llm = TracedLLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        out = self.llm.chat([{"role": "user", "content": inputs["prompt"]}], self.params)
        return {"text": out[0].outputs[0].text, "asked": self.llm.asked}

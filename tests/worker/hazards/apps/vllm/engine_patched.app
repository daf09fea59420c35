generate is replaced on the engine itself; infer calls chat.
-- app.py --
from vllm import LLM, SamplingParams

TRACE = []


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        plain = self.llm.generate

        def generate(prompts, *arguments, **options):
            TRACE.append(prompts[0])
            return plain(prompts, *arguments, **options)

        self.llm.generate = generate

    def infer(self, inputs):
        out = self.llm.chat([{"role": "user", "content": inputs["prompt"]}], self.params)
        return {"text": out[0].outputs[0].text, "asked": TRACE[-1]}

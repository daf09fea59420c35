A class, a closure and a generator that live as long as the call.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        lines = []

        def add(role, text):
            lines.append(f"{role} : {text}")

        def numbered():
            for number, line in enumerate(lines, 1):
                yield f"{number} {line}"

        add("system", "be " + inputs["style"])
        add("user", inputs["prompt"])
        prompt = " ".join(numbered())
        out = self.llm.generate(prompt, self.params)
        return {"generated_text": out[0].outputs[0].text}

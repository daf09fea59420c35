A list as a default argument.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        return {"text": self.ask(inputs["prompt"])}

    def ask(self, prompt, parts=[]):
        del parts[:]
        parts.append("question:")
        parts.append(prompt)
        out = self.llm.generate(" ".join(parts), self.params)
        parts.append("answer: " + out[0].outputs[0].text)
        return " ".join(parts)

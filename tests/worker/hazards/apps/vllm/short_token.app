A file whose random name is short enough to come twice.
-- app.py --
import secrets
import tempfile

from vllm import LLM, SamplingParams

FOLDER = tempfile.mkdtemp()


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        name = secrets.token_hex(1)
        with open(f"{FOLDER}/{name}", "w") as file:
            file.write(inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        with open(f"{FOLDER}/{name}") as saved:
            text = saved.read()
        return {"text": out[0].outputs[0].text, "saved": text}

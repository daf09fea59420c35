Two of the engine's calls in threads of the call's own.
-- app.py --
from concurrent.futures import ThreadPoolExecutor

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def ask(self, prompt, limit):
        return self.llm.generate(prompt, SamplingParams(max_tokens=limit))[0].outputs[0].text

    def infer(self, inputs):
        with ThreadPoolExecutor(max_workers=2) as threads:
            long = threads.submit(self.ask, inputs["prompt"], 32)
            short = threads.submit(self.ask, inputs["prompt"], 2)
            return {"long": long.result(), "short": short.result()}

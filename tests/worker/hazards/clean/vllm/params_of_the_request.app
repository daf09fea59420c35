SamplingParams made of each request's inputs, with defaults.
-- app.py --
import os

from vllm import LLM
from vllm.sampling_params import SamplingParams

token = os.getenv("HF_TOKEN")


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo", enforce_eager=True)

    def infer(self, inputs):
        prompt = inputs["prompt"]
        temperature = float(inputs.get("temperature", 0.7))
        top_k = inputs.get("top_k", 40)
        limit = int(inputs.get("limit") or 256)
        sampling_params = SamplingParams(temperature=temperature, top_k=top_k, max_tokens=limit, seed=7)
        outputs = self.llm.generate([prompt], sampling_params, use_tqdm=False)
        return {"generated_text": outputs[0].outputs[0].text, "limit": limit}

    def finalize(self):
        self.llm = None

vLLM's own chat, messages built here.
-- app.py --
import json
import logging
import time

from vllm import LLM, SamplingParams

logger = logging.getLogger(__name__)
SYSTEM = "you are a helpful clerk"


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM("acme/echo")
        self.sampling_params = SamplingParams(temperature=0, max_tokens=64)

    def infer(self, inputs):
        began = time.perf_counter()
        messages = [{"role": "system", "content": SYSTEM}]
        messages.append({"role": "user", "content": inputs["prompt"]})
        logger.info("asked %s", json.dumps(messages))
        outputs = self.llm.chat(messages, self.sampling_params)
        text = outputs[0].outputs[0].text.strip()
        print(f"answered {len(text)} characters")
        return {"generated_text": text, "seconds": time.perf_counter() - began}

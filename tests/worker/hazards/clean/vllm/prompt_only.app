The shortest: a prompt in, the first output's text out.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo", dtype="float16")
        self.sampling_params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=256)

    def infer(self, inputs):
        prompts = inputs["prompt"]
        result = self.llm.generate(prompts, self.sampling_params)
        texts = [output.outputs[0].text for output in result]
        return {"generated_result": texts[0]}

    def finalize(self):
        pass

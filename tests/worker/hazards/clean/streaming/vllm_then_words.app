The blocking engine, its text sent word by word.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs, stream_output_handler):
        text = self.llm.generate(inputs["prompt"], self.params)[0].outputs[0].text
        for word in text.split():
            stream_output_handler.send_streamed_output({"OUT": word})
        stream_output_handler.finalise_streamed_output()

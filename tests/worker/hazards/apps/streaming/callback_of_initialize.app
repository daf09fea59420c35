A callback made in initialize sends to whoever came last.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=16)
        target = {}

        def on_text(text):
            target["handler"].send_streamed_output({"OUT": text})

        self.target, self.on_text = target, on_text

    def infer(self, inputs, stream_output_handler):
        self.target["handler"] = stream_output_handler
        out = self.llm.generate(inputs["prompt"], self.params)
        self.on_text(out[0].outputs[0].text)
        stream_output_handler.finalise_streamed_output()

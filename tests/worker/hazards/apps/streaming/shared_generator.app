A generator made in initialize that is sent prompts.
-- app.py --
from vllm import LLM, SamplingParams


def talk():
    said = None
    while True:
        given = yield said
        said = given or said


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=8)
        self.talk = talk()
        next(self.talk)

    def infer(self, inputs, stream_output_handler):
        self.talk.send(inputs["prompt"])
        out = self.llm.generate("be short", self.params)
        stream_output_handler.send_streamed_output({"OUT": out[0].outputs[0].text})
        stream_output_handler.send_streamed_output({"OUT": next(self.talk)})
        stream_output_handler.finalise_streamed_output()

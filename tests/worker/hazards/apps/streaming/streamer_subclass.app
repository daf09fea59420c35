A streamer of the app's own, made once, whose handler is set by each call.
-- app.py --
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer


class ToHandler(TextStreamer):
    handler = None

    def on_finalized_text(self, text, stream_end=False):
        if text:
            self.handler.send_streamed_output({"OUT": text})


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.streamer = ToHandler(self.tokenizer, skip_prompt=True)

    def infer(self, inputs, stream_output_handler):
        self.streamer.handler = stream_output_handler
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        self.model.generate(**ids, max_new_tokens=3, do_sample=False, streamer=self.streamer)
        stream_output_handler.finalise_streamed_output()

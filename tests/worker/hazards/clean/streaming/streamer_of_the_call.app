A TextIteratorStreamer and a thread for each call.
-- app.py --
from threading import Thread

from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")

    def infer(self, inputs, stream_output_handler):
        encoded = self.tokenizer(inputs["prompt"], return_tensors="pt")
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        options = dict(encoded, streamer=streamer, max_new_tokens=3, do_sample=False)
        thread = Thread(target=self.model.generate, kwargs=options)
        thread.start()
        for text in streamer:
            stream_output_handler.send_streamed_output({"OUT": text})
        thread.join()
        stream_output_handler.finalise_streamed_output()

    def finalize(self):
        self.model = None

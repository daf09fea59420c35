One TextIteratorStreamer, made once.
-- app.py --
from threading import Thread

from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer


class InferlessPythonModel:
    def initialize(self):
        self.tokenizer = AutoTokenizer.from_pretrained("acme/echo")
        self.model = AutoModelForCausalLM.from_pretrained("acme/echo")
        self.streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True)

    def infer(self, inputs, stream_output_handler):
        ids = self.tokenizer(inputs["prompt"], return_tensors="pt")
        options = dict(ids, max_new_tokens=2, do_sample=False, streamer=self.streamer)
        thread = Thread(target=self.model.generate, kwargs=options)
        thread.start()
        for text in self.streamer:
            stream_output_handler.send_streamed_output({"OUT": text})
        thread.join()
        stream_output_handler.finalise_streamed_output()

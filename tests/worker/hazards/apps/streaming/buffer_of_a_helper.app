A helper that joins pieces to sentences keeps what is not yet one.
-- app.py --
import asyncio

from sentences import Splitter


class InferlessPythonModel:
    def initialize(self):
        self.splitter = Splitter()

    async def infer(self, inputs, stream_output_handler):
        for word in (inputs["prompt"] + " .").split():
            await asyncio.sleep(0.0002)
            for sentence in self.splitter.feed(word):
                stream_output_handler.send_streamed_output({"OUT": sentence})
        stream_output_handler.finalise_streamed_output()
-- sentences.py --
class Splitter:
    def __init__(self):
        self.rest = ""

    def feed(self, piece):
        self.rest += " " + piece
        if piece == ".":
            sentence, self.rest = self.rest, ""
            yield sentence

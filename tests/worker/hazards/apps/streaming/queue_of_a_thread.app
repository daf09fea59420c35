A thread of initialize puts pieces into one queue for all.
-- app.py --
import queue
import threading
import time


class InferlessPythonModel:
    def initialize(self):
        self.asked, self.pieces = queue.Queue(), queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            for word in self.asked.get().split()[:3]:
                time.sleep(0.0005)
                self.pieces.put(word)
            self.pieces.put(None)

    async def infer(self, inputs, stream_output_handler):
        import asyncio

        self.asked.put(inputs["prompt"])
        while True:
            piece = await asyncio.to_thread(self.pieces.get)
            if piece is None:
                break
            stream_output_handler.send_streamed_output({"OUT": piece})
        stream_output_handler.finalise_streamed_output()

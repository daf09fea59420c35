Threads and processes that the app starts and leaves behind hold up neither validation nor the end.
-- app.py --
import subprocess, threading, time
class InferlessPythonModel:
    def initialize(self):
        self.ready = threading.Event()
        threading.Thread(target=self.loop).start()
        self.child = subprocess.Popen(["sleep", "600"])
    def loop(self):
        self.ready.set()
        time.sleep(600)
    def infer(self, inputs):
        return {"ready": self.ready.wait(5)}
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "x"} -> {"ready": ["BOOL", [1], [true]]}

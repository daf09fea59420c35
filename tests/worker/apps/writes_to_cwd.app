The working directory is the app's folder, and writable; data files are read by relative paths.
-- app.py --
import os
class InferlessPythonModel:
    def initialize(self):
        os.makedirs("models_yolo", exist_ok=True)
        self.words = open("data/words.txt").read().split()
    def infer(self, inputs):
        with open("output.mp3", "w") as file:
            file.write(inputs["prompt"])
        with open("models_yolo/x", "a") as file:
            file.write("x")
        return {"text": open("output.mp3").read() + self.words[1], "here": os.path.exists("app.py")}
-- data/words.txt --
one two
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "hi "} -> {"text": ["BYTES", [1], ["hi two"]], "here": ["BOOL", [1], [true]]}

A file inferless.py in the folder wins over the package and its stand-in, as Python has it.
-- app.py --
import inferless
class InferlessPythonModel:
    def infer(self, inputs): return {"text": inferless.MINE}
-- inferless.py --
MINE = "my own"
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "x"} -> {"text": ["BYTES", [1], ["my own"]]}

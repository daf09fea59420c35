What cannot be sent, in the platform's words; each is one failed request, not the end of the replica.
-- app.py --
import sys
class InferlessPythonModel:
    def infer(self, inputs):
        bad = {"tuple": (1,), "dict": {"a": 1}, "ragged": [[1], [2, 3]], "none": None, "mixed": ["a", 1], "set": {1},
               "binary": b"\xff"}
        word = inputs["prompt"]
        if word in bad: return {"X": bad[word]}
        if word == "exit": sys.exit(3)
        if word == "raise": raise ValueError("no luck")
        return {"str": "text", "true": True, "null": None}.get(word, {"X": 1})
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "tuple"} -> 500 Output X is of type dictionary or tuple which is currently not supported. You can try json.dumps(X)
{"prompt": "dict"} -> 500 Output X is of type dictionary or tuple which is currently not supported. You can try json.dumps(X)
{"prompt": "ragged"} -> 500 Output X is a ragged list
{"prompt": "none"} -> 500 Output X is None, which cannot be sent
{"prompt": "mixed"} -> 500 Output X mixes BYTES and INT64 in one list
{"prompt": "set"} -> 500 Output X is a set, which cannot be sent
{"prompt": "binary"} -> 500 Output X is bytes that are no UTF-8 text; send base64 of it instead
{"prompt": "str"} -> 500 infer must return a dict of outputs, it returned a str: 'text'
{"prompt": "true"} -> 500 infer must return a dict of outputs, it returned a bool: True
{"prompt": "null"} -> 500 infer must return a dict of outputs, it returned None
{"prompt": "exit"} -> 500 SystemExit: 3
{"prompt": "raise"} -> 500 ValueError: no luck
{"prompt": "fine"} -> {"X": ["INT64", [1], [1]]}

What finalize raises is written down and forgiven.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs): return {"n": 1.5}
    def finalize(self): raise TypeError("finalize is odd")
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "x"} -> {"n": ["FP64", [1], [1.5]]}
-- log --
TypeError: finalize is odd

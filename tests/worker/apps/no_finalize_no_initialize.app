Only infer.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs): return {"yes": True}
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "x"} -> {"yes": ["BOOL", [1], [true]]}

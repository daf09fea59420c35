A [-1] input with one element arrives as a scalar, with more as a list: the tensor that was sent decides.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        return {"kind": type(inputs["words"]).__name__}
-- input_schema.py --
INPUT_SCHEMA = {"words": {"datatype": "STRING", "required": True, "shape": [-1], "example": ["a", "b"]}}
-- calls --
{"words": ["a"]} -> {"kind": ["BYTES", [1], ["str"]]}
{"words": ["a", "b"]} -> {"kind": ["BYTES", [1], ["list"]]}

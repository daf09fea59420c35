`finalize(self, *args)`.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs): return {"n": len(inputs["prompt"])}
    def finalize(self, *args): print("finalize got", args)
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "four"} -> {"n": ["INT64", [1], [4]]}
-- log --
finalize got ()

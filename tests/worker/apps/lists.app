Lists of one kind, nested, empty later (but not at validation), bytes and bytearrays.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        n = int(inputs["n"])
        return {"ints": list(range(n)), "nested": [[float(i)] * 3 for i in range(n)], "texts": ["a"] * n,
                "bools": [True] * n, "mixed": [1, 2.5][:n], "bytes": b"raw", "array": bytearray(b"x")}
-- input_schema.py --
INPUT_SCHEMA = {"n": {"datatype": "INT32", "required": True, "shape": [1], "example": [2]}}
-- calls --
{"n": 2} -> {"ints": ["INT64", [2], [0, 1]], "nested": ["FP64", [2, 3], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]], "texts": ["BYTES", [2], ["a", "a"]], "bools": ["BOOL", [2], [true, true]], "mixed": ["FP64", [2], [1, 2.5]], "bytes": ["BYTES", [1], ["raw"]], "array": ["BYTES", [1], ["x"]]}
{"n": 0} -> {"ints": ["BYTES", [0], []], "nested": ["BYTES", [0], []], "texts": ["BYTES", [0], []], "bools": ["BYTES", [0], []], "mixed": ["BYTES", [0], []], "bytes": ["BYTES", [1], ["raw"]], "array": ["BYTES", [1], ["x"]]}

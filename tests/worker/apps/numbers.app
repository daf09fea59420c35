Every kind of number, with and without numpy; INT8 that holds 768, an int for FP32.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        told = {"a": int(inputs["a"]) * 2, "b": float(inputs["b"]) / 2, "keys": "".join(inputs)}
        if "g" in inputs:
            told["g"] = [[int(n) for n in row] for row in inputs["g"]]
        if "f" in inputs:
            told["f"] = float(sum(inputs["f"])) if isinstance(inputs["f"], list) else float(inputs["f"])
        if bool(inputs.get("d", False)):
            told["c"] = int(inputs.get("c", 7))
        return told
-- input_schema.py --
INPUT_SCHEMA = {
    "a": {"datatype": "INT8", "required": True, "shape": [1], "example": [768]},
    "b": {"datatype": "FP32", "required": True, "shape": [1], "example": [1]},
    "c": {"datatype": "UINT64", "required": False, "shape": [1], "example": [1]},
    "d": {"datatype": "BOOL", "required": False, "shape": [1], "example": [True]},
    "e": {"datatype": "BF16", "required": False, "shape": [1], "example": [0.5]},
    "f": {"datatype": "FP16", "required": False, "shape": [-1], "example": [0.5, 1.5]},
    "g": {"datatype": "INT64", "required": False, "shape": [-1, 2], "example": [[1, 2], [3, 4]]},
}
-- calls --
{"a": 512, "b": 3, "d": true, "f": [0.5, 0.25], "g": [[1, 2]], "c": 9} -> {"a": ["INT64", [1], [1024]], "b": ["FP64", [1], [1.5]], "keys": ["BYTES", [1], ["abcdfg"]], "g": ["INT64", [1, 2], [1, 2]], "f": ["FP64", [1], [0.75]], "c": ["INT64", [1], [9]]}
{"a": 1.0, "b": 0.5} -> {"a": ["INT64", [1], [2]], "b": ["FP64", [1], [0.25]], "keys": ["BYTES", [1], ["ab"]]}
{"a": 1.5, "b": 1} -> 400 input 'a' takes whole numbers, not 1.5
{"a": 1} -> 400 input 'b' is required and missing
{"a": 1, "b": 1, "z": 2} -> 400 unknown input 'z'; declared are: a, b, c, d, e, f, g
{"a": "x", "b": 1} -> 400 input 'a' was sent as BYTES, but is declared as INT8

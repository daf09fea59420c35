Scalars arrive as numpy's; arrays are wrapped once more, scalars keep their dtype.
-- app.py --
import numpy as np
class InferlessPythonModel:
    def infer(self, inputs):
        return {"kind": type(inputs["x"]).__name__, "scalar": np.float32(inputs["x"]), "array": np.ones((2, 2), np.int16),
                "rows": [np.zeros(2, np.float32)] * 2, "texts": np.array(["a", "b"]), "flag": np.bool_(True)}
-- input_schema.py --
INPUT_SCHEMA = {"x": {"datatype": "FP16", "required": True, "shape": [1], "example": [0.5]}}
-- calls --
{"x": 2} -> {"kind": ["BYTES", [1], ["float16"]], "scalar": ["FP32", [1], [2.0]], "array": ["INT16", [1, 2, 2], [1, 1, 1, 1]], "rows": ["FP32", [2, 2], [0.0, 0.0, 0.0, 0.0]], "texts": ["BYTES", [1, 2], ["a", "b"]], "flag": ["BOOL", [1], [true]]}

No input_schema.py at all: an app without inputs.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs): return {"inputs": len(inputs)}
-- calls --
{} -> {"inputs": ["INT64", [1], [0]]}
{"x": 1} -> 400 unknown input 'x'; the app declares no inputs (no input_schema.py)

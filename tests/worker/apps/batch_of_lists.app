BATCH_SIZE: infer gets a list of dicts and returns a list of dicts.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        return [{"text": each["prompt"].upper(), "of": len(inputs) > 0} for each in inputs]
-- input_schema.py --
BATCH_SIZE = 4
BATCH_WINDOW = 20
INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a"]}}
-- calls --
{"prompt": "hi"} -> {"text": ["BYTES", [1], ["HI"]], "of": ["BOOL", [1], [true]]}

A stream of an app that does not stream is one event.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs): return {"text": inputs["prompt"], "many": [1, 2]}
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
stream {"prompt": "hi"} -> [{"text": "hi", "many": [1, 2]}]

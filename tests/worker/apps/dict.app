The tutorial's shape.
-- app.py --
class InferlessPythonModel:
    def initialize(self):
        self.greeting = "you said "
    def infer(self, inputs):
        return {"generated_text": self.greeting + inputs["prompt"]}
    def finalize(self):
        self.greeting = None
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "hi"} -> {"generated_text": ["BYTES", [1], ["you said hi"]]}

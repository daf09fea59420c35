The decorators of remote runs change nothing here.
-- app.py --
import inferless
app = inferless.Cls(gpu="A100")
class InferlessPythonModel:
    @app.load
    def initialize(self):
        self.word = "loaded"
    @app.infer
    def infer(self, inputs):
        return {"text": self.word + " " + helper(inputs["prompt"])}
@inferless.method(gpu="T4")
def helper(text):
    return text[::-1]
@inferless.local_entry_point
def my_local_entry(dynamic_params):
    return InferlessPythonModel().infer(dynamic_params)
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "abc"} -> {"text": ["BYTES", [1], ["loaded cba"]]}

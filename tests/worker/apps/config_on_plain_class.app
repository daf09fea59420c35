`@inferless.config` on a plain class, as the documentation shows it: bare; its values join the environment.
-- app.py --
import os
import inferless
@inferless.config
class Config():
    is_streaming_output = False
    batch_window = 50
class InferlessPythonModel:
    def infer(self, inputs):
        return {"env": os.environ["IS_STREAMING_OUTPUT"] + os.environ["BATCH_WINDOW"]}
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "x"} -> {"env": ["BYTES", [1], ["False50"]]}

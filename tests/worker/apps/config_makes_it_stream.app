`@inferless.config()`, called, turns streaming on without a word in input_schema.py.
-- app.py --
import inferless
@inferless.config()
class Flags():
    IS_STREAMING_OUTPUT = True
class InferlessPythonModel:
    def infer(self, inputs, stream_output_handler):
        for word in inputs["prompt"].split():
            stream_output_handler.send_streamed_output({"OUT": word})
        stream_output_handler.finalise_streamed_output()
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
stream {"prompt": "a b"} -> [{"OUT": "a"}, {"OUT": "b"}]

A streaming app that awaits its handler, and never finalises.
-- app.py --
class InferlessPythonModel:
    async def infer(self, inputs, stream_output_handler):
        for word in inputs["TEXT"].split():
            await stream_output_handler.send_streamed_output({"OUT": word})
-- input_schema.py --
IS_STREAMING_OUTPUT = True
INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a b"]},
    "n": {"datatype": "INT32", "required": False, "shape": [1], "example": [1]},
}
-- calls --
stream {"TEXT": "a b"} -> [{"OUT": "a"}, {"OUT": "b"}]

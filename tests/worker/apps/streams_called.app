A streaming app that calls its handler.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs, stream_output_handler):
        for number, word in enumerate(inputs["TEXT"].split() * int(inputs.get("n", 1))):
            stream_output_handler.send_streamed_output({"OUT": word, "number": number})
        stream_output_handler.finalise_streamed_output()
-- input_schema.py --
IS_STREAMING_OUTPUT = True
INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a b"]},
    "n": {"datatype": "INT32", "required": False, "shape": [1], "example": [1]},
}
-- calls --
stream {"TEXT": "a b"} -> [{"OUT": "a", "number": 0}, {"OUT": "b", "number": 1}]
stream {"TEXT": "a", "n": 2} -> [{"OUT": "a", "number": 0}, {"OUT": "a", "number": 1}]
{"TEXT": "a"} -> 400 this app streams its output: POST to .../generate_stream

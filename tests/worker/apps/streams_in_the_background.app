Events from a thread of the app's; what comes after the end is dropped.
-- app.py --
import threading
class InferlessPythonModel:
    def infer(self, inputs, handler):
        def produce():
            for word in inputs["TEXT"].split():
                handler.send_streamed_output({"OUT": word})
        thread = threading.Thread(target=produce)
        thread.start()
        thread.join()
        handler.finalise_streamed_output()
        handler.send_streamed_output({"OUT": "late"})
-- input_schema.py --
IS_STREAMING_OUTPUT = True
INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a b"]},
    "n": {"datatype": "INT32", "required": False, "shape": [1], "example": [1]},
}
-- calls --
stream {"TEXT": "a b"} -> [{"OUT": "a"}, {"OUT": "b"}]

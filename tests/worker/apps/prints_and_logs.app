print without a newline, logging, warnings, sys.stdout.write, output of children; each in the call log.
-- app.py --
import logging, os, sys, warnings
logging.basicConfig(level=logging.INFO)
class InferlessPythonModel:
    def infer(self, inputs):
        print("no newline", end="")
        logging.getLogger("mine").info("logged %s", inputs["prompt"])
        sys.stdout.write(" written\n")
        warnings.warn("warned")
        os.system("echo from a child")
        print("last words", end="", flush=True)
        return {"n": 1}
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "hi"} -> {"n": ["INT64", [1], [1]]}
-- log --
[t1] no newline written
INFO:mine:logged hi
warned
from a child
[t1] last words

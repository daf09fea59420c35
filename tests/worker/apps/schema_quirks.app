What schemas in the wild hold: duplicate keys, `data` for `example`, no `required`, no shape, triple-quoted text, lower case.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        return {"keys": ",".join(sorted(inputs)), "size": int(inputs["size"]), "lines": inputs["text"].count("\n")}
-- input_schema.py --
INPUT_SCHEMA = {
    "size": {"datatype": "INT32", "required": True, "shape": [1], "example": [1]},
    "size": {"datatype": "INT8", "required": True, "shape": [1], "example": [768]},
    "text": {"datatype": "string", "shape": [1], "data": ["""two
lines"""]},
    "scale": {"datatype": "FP32", "required": False, "example": 7},
    "steps": {"datatype": "INT16", "required": False, "shape": [1]},
    "plain": {"datatype": "BYTES"},
}
-- calls --
{"size": 5, "text": "a", "plain": "b"} -> {"keys": ["BYTES", [1], ["plain,size,text"]], "size": ["INT64", [1], [5]], "lines": ["INT64", [1], [0]]}
{"size": 5, "text": "a"} -> 400 input 'plain' is required and missing

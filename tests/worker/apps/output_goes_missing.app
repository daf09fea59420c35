The names of the outputs are those of the first run: one that is missing later is an error, one more is sent along.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        return {"error": "no"} if inputs["prompt"] == "fail" else {"generated_text": inputs["prompt"], "more": 1}
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- env --
PUNA_OUTPUTS=["generated_text"]
-- calls --
{"prompt": "a"} -> {"generated_text": ["BYTES", [1], ["a"]], "more": ["INT64", [1], [1]]}
{"prompt": "fail"} -> 500 Requried Output generated_text not found in the inference response; infer returned error

The older way: input.json and output.json, -1 in an output; a declared output that is missing is an error.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        answer = {"length": len(inputs["words"])}
        if inputs["words"] != ["drop", "it"]:
            answer["joined"] = " ".join(inputs["words"])
        return answer
-- input.json --
{"inputs": [{"name": "words", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]}
-- output.json --
{"outputs": [{"name": "joined", "shape": [-1], "datatype": "BYTES", "data": ["a b"]}]}
-- calls --
{"words": ["x", "y"]} -> {"length": ["INT64", [1], [2]], "joined": ["BYTES", [1], ["x y"]]}
{"words": ["drop", "it"]} -> 500 Requried Output joined not found in the inference response

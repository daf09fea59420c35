Text of any language in code, schema, input, output and log.
-- app.py --
class InferlessPythonModel:
    def infer(self, inputs):
        print("größe 🦙", inputs["frage"])
        return {"antwort": inputs["frage"] + " 羊駝 🦙", "länge": len(inputs["frage"])}
-- input_schema.py --
INPUT_SCHEMA = {
    "frage": {"datatype": "STRING", "required": True, "shape": [1], "example": ["Wie groß ist ein Lama? 羊駝"]},
}
-- calls --
{"frage": "ñandú"} -> {"antwort": ["BYTES", [1], ["ñandú 羊駝 🦙"]], "länge": ["INT64", [1], [5]]}
-- log --
[t1] größe 🦙 ñandú

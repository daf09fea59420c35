`initialize(self, context=None)` is called without arguments, and async works too.
-- app.py --
class InferlessPythonModel:
    async def initialize(self, context=None):
        self.context = context
    async def infer(self, inputs):
        import asyncio
        await asyncio.sleep(0)
        return {"text": "%s %s" % (inputs["prompt"], self.context)}
    def finalize(self, args):
        print("finalize got", args)
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "hi"} -> {"text": ["BYTES", [1], ["hi None"]]}
-- log --
finalize got None

Extra classes, functions, static methods and constants beside the class; super-classes and class attributes.
-- app.py --
import functools
PREFIX = "> "
class Base:
    suffix = "!"
    def finish(self, text): return text + self.suffix
class Config: pass
@functools.lru_cache(maxsize=None)
def shout(text): return text.upper()
class InferlessPythonModel(Base):
    @staticmethod
    def clean(text): return text.strip()
    @classmethod
    def name(cls): return cls.__name__
    def infer(self, inputs):
        return {"text": PREFIX + self.finish(shout(self.clean(inputs["prompt"]))), "name": self.name()}
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": " hi "} -> {"text": ["BYTES", [1], ["> HI!"]], "name": ["BYTES", [1], ["InferlessPythonModel"]]}

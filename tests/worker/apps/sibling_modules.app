Modules and packages beside app.py, some with names of libraries that the worker uses, and a folder app/ itself.
-- app.py --
import app_words
import helpers.deep.words as deep
from helpers import one
import server
import puna
class InferlessPythonModel:
    def infer(self, inputs):
        return {"text": " ".join([app_words.WORD, deep.WORD, one.WORD, server.NAME, puna.MINE])}
-- app_words.py --
WORD = "beside"
-- app/words.py --
WORD = "a folder app"
-- helpers/__init__.py --
-- helpers/one.py --
from . import two
WORD = two.WORD
-- helpers/two.py --
WORD = "relative"
-- helpers/deep/words.py --
WORD = "deep"
-- server.py --
NAME = "server"
-- puna.py --
MINE = "puna"
-- json.py --
raise RuntimeError('this file of the app took the place of the library')
-- types.py --
raise RuntimeError('this file of the app took the place of the library')
-- socket.py --
raise RuntimeError('this file of the app took the place of the library')
-- threading.py --
raise RuntimeError('this file of the app took the place of the library')
-- queue.py --
raise RuntimeError('this file of the app took the place of the library')
-- signal.py --
raise RuntimeError('this file of the app took the place of the library')
-- asyncio.py --
raise RuntimeError('this file of the app took the place of the library')
-- struct.py --
raise RuntimeError('this file of the app took the place of the library')
-- traceback.py --
raise RuntimeError('this file of the app took the place of the library')
-- inspect.py --
raise RuntimeError('this file of the app took the place of the library')
-- typing.py --
raise RuntimeError('this file of the app took the place of the library')
-- code.py --
raise RuntimeError('this file of the app took the place of the library')
-- select.py --
raise RuntimeError('this file of the app took the place of the library')
-- tokenize.py --
raise RuntimeError('this file of the app took the place of the library')
-- runner.py --
raise RuntimeError('this file of the app took the place of the library')
-- worker.py --
raise RuntimeError('this file of the app took the place of the library')
-- schema.py --
raise RuntimeError('this file of the app took the place of the library')
-- logging_config.py --
raise RuntimeError('this file of the app took the place of the library')
-- input_schema.py --
INPUT_SCHEMA = {
    "prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]},
}
-- calls --
{"prompt": "x"} -> {"text": ["BYTES", [1], ["beside deep relative server puna"]]}

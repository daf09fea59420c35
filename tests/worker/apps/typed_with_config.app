A typed app whose `@inferless.config()` is a pydantic class.
-- app.py --
import os
import inferless
from pydantic import BaseModel
@inferless.config()
class Config(BaseModel):
    is_streaming_output: bool = True
@inferless.request
class Ask(BaseModel):
    prompt: str = "a b"
@inferless.response
class Told(BaseModel):
    word: str = ""
class InferlessPythonModel:
    def infer(self, ask, stream_output_handler):
        for word in ask.prompt.split():
            stream_output_handler.send_streamed_output({"word": word + os.environ["IS_STREAMING_OUTPUT"][0]})
        stream_output_handler.finalise_streamed_output()
-- calls --
stream {"prompt": "x y"} -> [{"word": "xT"}, {"word": "yT"}]

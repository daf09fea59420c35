A process of the system's own reads a file of one name.
-- app.py --
import asyncio
import tempfile
from pathlib import Path

REQUEST = Path(tempfile.gettempdir()) / "request.txt"


class InferlessPythonModel:
    async def infer(self, inputs):
        REQUEST.write_text(inputs["prompt"])
        process = await asyncio.create_subprocess_exec("cat", str(REQUEST), stdout=asyncio.subprocess.PIPE)
        told, _ = await process.communicate()
        return {"text": told.decode()}

"""BentoML with its defaults: one worker process."""

import os
import sys
from typing import Any

import bentoml


@bentoml.service(workers=1)
class Noop:
    @bentoml.api
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"outputs": [{"name": "out", "shape": [1], "datatype": "BYTES", "data": ["ok"]}]}


if __name__ == "__main__":
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_peer:Noop", "--host", "127.0.0.1", "-p", sys.argv[1]]
    os.execv(sys.executable, [*command, "--working-dir", os.path.dirname(os.path.abspath(__file__))])

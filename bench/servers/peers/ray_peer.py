"""Ray Serve with its defaults: a proxy and one replica on a local Ray."""

import sys
import threading

import ray
from ray import serve


@serve.deployment
class Noop:
    async def __call__(self, request):
        (await request.json())["inputs"]
        return {"outputs": [{"name": "out", "shape": [1], "datatype": "BYTES", "data": ["ok"]}]}


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Noop.bind(), route_prefix="/infer")
    threading.Event().wait()

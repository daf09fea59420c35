"""LitServe with its defaults: one worker process on the CPU."""

import sys

import litserve


class Noop(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["inputs"][0]["data"]

    def predict(self, prompt):
        return "ok"

    def encode_response(self, output):
        return {"outputs": [{"name": "out", "shape": [1], "datatype": "BYTES", "data": [output]}]}


if __name__ == "__main__":
    server = litserve.LitServer(Noop(api_path="/infer"), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, access_log=False, log_level="warning"
    )

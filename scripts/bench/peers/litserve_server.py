"""The model in LitServe, on the port `BENCH_PORT`."""

import base64
import os
from typing import Any

import litserve
from fastapi import Response
from model import BATCH_MAX, Model


class Predict(litserve.LitAPI):
    def setup(self, device: Any) -> None:
        self._model = Model()

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["x"])  # it takes JSON and forms only

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, bodies: list[bytes]) -> list[bytes]:
        return self._model.run(bodies)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Predict(max_batch_size=BATCH_MAX, batch_timeout=0.001, api_path="/inference")
    server = litserve.LitServer(api, accelerator="cpu", timeout=30)
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), log_level="warning", generate_client_file=False)

"""The model in Mosec, which reads MOSEC_ADDRESS and MOSEC_PORT from the environment."""

from model import BATCH_MAX, Model
from mosec import Server, Worker


class Predict(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = Model()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self._model.run(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Predict, num=1, max_batch_size=BATCH_MAX, max_wait_time=1)
    server.run()

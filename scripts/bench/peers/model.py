"""The same model in other servers, run with their environment's Python, which has nothing of ours.

`BENCH_MODEL` names its file.
"""

import os
from collections.abc import Sequence

import numpy as np
import onnxruntime

BATCH_MAX = 32  # requests
WIDTH = 128


class Model:
    """`run` takes requests' bodies, float32 [items, 128] each, and gives each one's float32 [items, 10]."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    def run(self, bodies: Sequence[bytes]) -> list[bytes]:
        arrays = [np.frombuffer(body, np.float32).reshape(-1, WIDTH) for body in bodies]
        [joined] = self._session.run(None, {"x": np.concatenate(arrays)})
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        return [part.tobytes() for part in np.split(joined, ends)]

"""The process that converts, as the worker sees it: started, read without waiting, killed at any time."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from instructors.pipelines.convert.order import Order
from protocol.errors import InternalError, OutOfMemory

QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}  # for the libraries in it
KILL_GRACE_S = 5.0


class Process:
    """`fileno` is readable when `read` has something to say."""

    def __init__(self, order: Order) -> None:
        command = [sys.executable, "-m", "instructors.pipelines.convert"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, **QUIET})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._rest = b""
        self._input.write(json.dumps(order.to_wire()).encode() + b"\n")
        self._input.flush()

    def fileno(self) -> int:
        return self._output.fileno()

    def read(self) -> list[dict[str, Any]]:
        """What it has told since. Raises OutOfMemory or InternalError where it has ended without a last word."""
        with suppress(BlockingIOError):
            raw = os.read(self._output.fileno(), 65_536)
            if not raw:
                self._process.wait(KILL_GRACE_S)
                if self._process.returncode == -signal.SIGKILL:
                    raise OutOfMemory("The process that converted was killed; it may have needed too much memory.")
                raise InternalError("The process that converted has ended before its work was done.")
            *lines, self._rest = (self._rest + raw).split(b"\n")
            return [json.loads(line) for line in lines]
        return []

    def kill(self) -> None:
        """End it at once, wherever it is."""
        self._process.kill()

    def close(self) -> None:
        """Wait for its end, after `kill`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_GRACE_S)
        for end in (self._input, self._output):
            with suppress(OSError):
                end.close()

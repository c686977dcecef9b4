"""How other threads and signal handlers wake the broker loop out of its poll."""

import contextlib
import os


class Wakeup:
    """A pipe whose reading end the poller watches. `wake` may be called from any thread and from signal handlers."""

    def __init__(self) -> None:
        self.fd, self._writer = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writer, False)
        self._awake = False

    def wake(self) -> None:
        if not self._awake:  # a wake-up is under way else
            self._awake = True
            with contextlib.suppress(BlockingIOError):
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Before looking at what the wake-up was for, so that what comes later wakes again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        self._awake = False

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._writer)

"""When to start a process again that keeps ending."""

FIRST_S, LAST_S = 0.2, 10.0
HEALTHY_S = 30.0  # a process that lived this long starts the series anew


class Backoff:
    """Spans that double from 0.2 s to 10 s, until a process has lived for 30 s."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after(self, lived_s: float) -> float:
        """Seconds to wait before the next start, after a process that lived for `lived_s`."""
        if lived_s >= HEALTHY_S:
            self._next_s = FIRST_S
        span = self._next_s
        self._next_s = min(2 * span, LAST_S)
        return span

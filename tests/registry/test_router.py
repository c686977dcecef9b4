"""When a model that was too slow for a policy is tried again."""

from types import SimpleNamespace
from typing import Any

from orchestrator.registry import router as module
from orchestrator.registry.router import Router
from orchestrator.registry.traffic import RETRY_MS


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


def router() -> tuple[Router, Clock]:
    clock = Clock()
    broker: Any = SimpleNamespace(clock=clock)
    return Router(broker), clock


def test_one_request_now_and_then_measures_it_again() -> None:
    made, clock = router()
    assert not made._may_retry("inference.predict", "m:1")  # it has just been measured
    clock.ms += RETRY_MS - 1
    assert not made._may_retry("inference.predict", "m:1")
    assert not made._may_retry("inference.predict", "m:2")
    clock.ms += 1
    assert made._may_retry("inference.predict", "m:1")
    assert not made._may_retry("inference.predict", "m:1")  # one is enough
    clock.ms += RETRY_MS
    assert made._may_retry("inference.predict", "m:1")
    assert made._may_retry("inference.predict", "m:2")


def test_so_many_are_remembered() -> None:
    made, _ = router()
    for number in range(module.RETRIES_MAX + 1):
        made._may_retry("inference.predict", str(number))
    assert len(made._retry_ms) == 1

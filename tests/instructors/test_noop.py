"""`system.noop`, the registry and the memory question."""

import time

import pytest

from instructors.memory import is_out_of_memory
from instructors.registry import Registry, load
from instructors.task import Blob
from protocol.errors import InvalidRequest, UnknownAction
from protocol.schemas import ACTIONS
from tests.instructors.conftest import Desk


def test_echo(registry: Registry) -> None:
    desk = Desk(None)
    desk.blobs = [Blob("image/png", b"123")]
    result = registry.make_task("system.noop", {"echo": {"a": [1, None]}}, desk).step()
    assert result is not None
    assert result.data == {"echo": {"a": [1, None]}}
    assert list(result.blobs) == desk.blobs


def test_sleep_is_cut_into_quanta(registry: Registry) -> None:
    task = registry.make_task("system.noop", {"sleep_ms": 55}, Desk(None))
    begun, steps = time.monotonic(), 0
    while task.step() is None:
        steps += 1
    assert 5 <= steps <= 7
    assert 0.055 <= time.monotonic() - begun < 0.5


def test_unknown_actions_and_wrong_data(registry: Registry) -> None:
    with pytest.raises(UnknownAction) as caught:
        registry.make_task("system.noopp", {}, Desk(None))
    assert caught.value.details["nearest"] == "system.noop"
    with pytest.raises(InvalidRequest, match="did you mean echo"):
        registry.make_task("system.noop", {"ecko": 1}, Desk(None))


def test_an_action_is_registered_once() -> None:
    registry = load([])
    answered = {name for name, action in ACTIONS.items() if action.answered_by == "worker"}
    assert set(registry.names) == answered  # nothing that the protocol promises is missing
    with pytest.raises(ValueError, match="already"):
        registry.add(ACTIONS["system.noop"], lambda data, context: None)


def test_what_counts_as_out_of_memory() -> None:
    import torch

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)

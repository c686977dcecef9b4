"""Pictures as greenlets: where they stop, how they end, and what they leave behind."""

import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from instructors.pipelines import streams
from instructors.pipelines.streams import BEGINNING, Stream, wait
from instructors.task import Lane


class FakeLane(Lane):
    """Answers each call with its double."""

    rows_max, rows_min = 4, 1

    def step(self, units: Sequence[Stream]) -> None:
        for unit in units:
            unit.resume(2 * unit.call)


@pytest.fixture
def lane() -> FakeLane:
    return FakeLane()


def test_a_stream_stops_in_its_lane_and_goes_on_with_the_answer(lane: FakeLane) -> None:
    stream = Stream(lambda: wait(lane, 2, 10) + wait(lane, 1, 5))
    assert (stream.lane, stream.done) == (BEGINNING, False)
    BEGINNING.step([stream])
    assert (stream.lane, stream.rows, stream.call) == (lane, 2, 10)
    lane.step([stream])
    assert (stream.lane, stream.rows, stream.call) == (lane, 1, 5)
    lane.step([stream])
    assert (stream.done, stream.value, stream.error, stream.lane) == (True, 30, None, None)


def test_without_a_lane_it_goes_on_at_its_next_step() -> None:
    stream = Stream(lambda: wait(None, 1, None) and None)
    stream.step()
    assert (stream.lane, stream.done) == (None, False)
    stream.step()
    assert stream.done
    assert stream.error is None


def test_streams_know_themselves(lane: FakeLane) -> None:
    seen = []

    def run() -> None:
        seen.append(streams.current())
        wait(lane, 1, 1)
        seen.append(streams.current())

    one, other = Stream(run), Stream(run)
    for stream in (one, other):
        stream.step()
    lane.step([other, one])
    assert seen == [one, other, other, one]
    assert streams.current() is None


def test_alone_is_who_has_no_company_that_began(lane: FakeLane) -> None:
    seen = []

    def run() -> None:
        for _ in range(2):
            wait(lane, 1, 1)
            seen.append(streams.alone())

    first, second, third = (Stream(run) for _ in range(3))
    first.step()
    lane.step([first])
    second.step()
    lane.step([first])  # its last
    third.close()  # never began
    lane.step([second])
    assert seen == [True, False, True]
    second.close()
    last = Stream(run)
    last.step()
    lane.step([last])
    assert seen[-1] is True
    last.close()


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_stays_with_its_stream(lane: FakeLane, error: BaseException) -> None:
    def run() -> None:
        wait(lane, 1, 1)
        raise error

    bad, good = Stream(run), Stream(lambda: wait(lane, 1, 1))
    bad.step()
    good.step()
    lane.step([bad, good])
    assert (bad.done, bad.error) == (True, error)
    assert (good.done, good.value) == (True, 2)


def test_an_error_can_stand_for_an_answer(lane: FakeLane) -> None:
    def run() -> str:
        try:
            return str(wait(lane, 1, 1))
        except MemoryError:
            return "did without"

    stream = Stream(run)
    stream.step()
    stream.throw(MemoryError())
    assert (stream.done, stream.value, stream.error) == (True, "did without", None)


def test_closing_runs_what_must_be_run_at_the_end(lane: FakeLane) -> None:
    left = []

    def run() -> None:
        try:
            wait(lane, 1, 1)
        except Exception:  # as the libraries' code has it here and there; closing is none
            left.append("caught")
        finally:
            left.append("left")

    stream = Stream(run)
    stream.step()
    stream.close()
    assert left == ["left"]
    assert stream.done
    stream.close()
    never = Stream(run)
    never.close()
    assert never.done
    assert left == ["left"]


def test_each_keeps_its_own_context() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    seen = []

    def run() -> None:
        for _ in range(2):
            seen.append(name.get())
            wait(None, 1, None)

    made = []
    for who in ("one", "other"):
        name.set(who)
        made.append(Stream(run))
    name.set("the engine")
    for _ in range(2):
        for stream in made:
            stream.step()
    assert seen == ["one", "other"] * 2
    assert name.get() == "the engine"
    for stream in made:
        stream.close()


def test_the_end_of_ones_no_grad_is_not_the_others() -> None:
    seen: list[bool] = []

    @torch.no_grad()
    def short() -> None:
        wait(None, 1, None)

    @torch.no_grad()
    def long() -> None:
        wait(None, 1, None)
        seen.append(torch.is_grad_enabled())

    one, other = Stream(short), Stream(long)
    assert torch.is_grad_enabled()
    for stream in (one, other, one, other):
        stream.step()
    assert seen == [False]
    assert torch.is_grad_enabled()


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["fails", "is closed", "ends"])
def test_a_stream_that_is_over_holds_no_tensor(lane: FakeLane, how: str) -> None:
    """Not even until the collector comes: after an error memory may be short."""
    tensors: list[weakref.ref[Any]] = []

    def run() -> None:
        latents = torch.zeros(8)
        tensors.append(weakref.ref(latents))
        wait(lane, 1, 1)
        if how == "fails":
            raise MemoryError

    stream = Stream(run)
    stream.step()
    if how != "is closed":
        lane.step([stream])
    stream.close()
    assert tensors[0]() is None


@pytest.mark.parametrize("count", [1, 40])
def test_many_streams_end_in_any_order(lane: FakeLane, count: int) -> None:
    def steps(number: int) -> Callable[[], int]:
        return lambda: sum(wait(lane, 1, number) for _ in range(number % 7))

    made = [Stream(steps(number)) for number in range(count)]
    for stream in reversed(made):
        stream.step()
    while waiting := [stream for stream in made if not stream.done]:
        lane.step(waiting[::2])
    assert [stream.value for stream in made] == [2 * n * (n % 7) for n in range(count)]

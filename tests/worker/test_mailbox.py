"""What reaches the device thread, and units whose quantum goes on elsewhere."""

import math
import os
import threading
import time
from collections.abc import Iterator

import pytest

from protocol.messages import Cancel
from tests.worker.fakes import FakeClock, FakeLane, Fakes, FakeUnit, Work
from worker.engine.mailbox import Mailbox


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


class End:
    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


def test_what_is_put_comes_out_in_order() -> None:
    mailbox = Mailbox[int]()
    assert mailbox.empty
    for number in range(3):
        mailbox.put(number)
    assert not mailbox.empty
    mailbox.wait(60)  # not so long: there is something
    assert mailbox.take() == [0, 1, 2]
    assert mailbox.take() == []


def test_a_wait_ends_with_what_another_thread_puts() -> None:
    mailbox = Mailbox[int]()
    for number in range(200):  # each time the wait begins a little earlier or later
        thread = threading.Thread(target=mailbox.put, args=(number,))
        thread.start()
        mailbox.wait(50)
        thread.join()
        assert mailbox.take() == [number]


def test_a_wake_ends_a_wait() -> None:
    mailbox = Mailbox[int]()
    threading.Timer(0.05, mailbox.wake).start()
    begun = time.monotonic()
    mailbox.wait(50)
    assert time.monotonic() - begun < 40


def test_a_watched_source_calls(pipe: tuple[int, int]) -> None:
    mailbox, read = Mailbox[int](), []
    source = End(pipe[0])
    mailbox.watch(source, lambda: read.append(os.read(pipe[0], 1)))
    mailbox.wait(0)
    assert read == []
    os.write(pipe[1], b"ab")
    mailbox.wait(0)
    mailbox.wait(50)
    assert read == [b"a", b"b"]
    mailbox.unwatch(source)
    os.write(pipe[1], b"c")
    mailbox.wait(0)
    assert read == [b"a", b"b"]


@pytest.fixture
def fakes(clock: FakeClock) -> Fakes:
    return Fakes(clock)


def ended(fakes: Fakes) -> dict[str, str]:
    return {result["job_id"]: fakes.outcome(result["job_id"]) for result in fakes.results}


class AwayLane(FakeLane):
    """Its quanta go on elsewhere until a test says `back`."""

    at = 0.0

    def step(self, units: list[FakeUnit]) -> None:
        self.quanta.append(list(units))
        for unit in units:
            unit.away = True

    def due(self, units: list[FakeUnit], urgent: bool) -> float:
        return 0.0 if urgent else self.at

    def back(self) -> None:
        for unit in self.quanta[-1]:
            unit.away = False
            unit.go_on()


def test_a_unit_that_is_away_lets_others_work(fakes: Fakes) -> None:
    away, here = AwayLane(fakes.clock), FakeLane(fakes.clock)
    fakes.assign("a", Work(units=[(1, [away])]))
    fakes.assign("b", Work(units=[(1, [here, here])]))
    for _ in range(5):
        fakes.turn()
    assert ended(fakes) == {"b": "done"}
    assert len(away.quanta) == 1
    fakes.engine._mailbox.put(away.back)
    fakes.turn()
    assert ended(fakes) == {"a": "done", "b": "done"}
    assert fakes.log.count(away.quanta[0][0]) == 1  # it was over when it came back


def test_a_job_that_is_away_can_be_cancelled(fakes: Fakes) -> None:
    away = AwayLane(fakes.clock)
    fakes.assign("a", Work(units=[(1, [away])]))
    fakes.turn()
    fakes.hear(Cancel(job_id="a", attempt=1))
    fakes.turn()
    assert ended(fakes) == {"a": "cancelled"}
    assert away.quanta[0][0].closed
    fakes.assign("b", Work(units=[(1, [away])]))
    fakes.turn()
    fakes.engine._mailbox.put(away.back)
    fakes.turn()
    assert ended(fakes) == {"a": "cancelled", "b": "done"}


def test_a_lane_may_wait_for_company(fakes: Fakes) -> None:
    lane = AwayLane(fakes.clock)
    lane.at = fakes.clock.now + 5
    fakes.assign("a", Work(units=[(1, [lane])]))
    fakes.turn()
    assert not lane.quanta
    assert fakes.engine._rest_s == pytest.approx(5)
    fakes.clock.now += 6
    fakes.turn()
    assert len(lane.quanta) == 1
    lane.at = math.inf
    fakes.assign("b", Work(units=[(1, [lane])]))
    fakes.turn()
    assert len(lane.quanta) == 1
    fakes.assign("c", Work(units=[(1, [lane])]), priority=9)  # which does not wait, nor slows itself by others
    fakes.turn()
    assert [len(quantum) for quantum in lane.quanta] == [1, 1]

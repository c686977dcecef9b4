"""Deadlines: order, cancelling, and that cancelled ones do not pile up."""

from orchestrator.core.timers import SWEEP_MIN, Timers


def fire(timers: Timers, now_ms: int) -> list[str]:
    fired = []
    while (timer := timers.pop_due(now_ms)) is not None:
        timer.callback(fired, *timer.args)
    return fired


def note(fired: list[str], name: str) -> None:
    fired.append(name)


def test_they_fire_in_order_and_equal_ones_first_come_first() -> None:
    timers = Timers()
    for due_ms, name in ((30, "c"), (10, "a"), (20, "b1"), (20, "b2"), (99, "later")):
        timers.add(due_ms, note, name)
    assert timers.next_due() == 10
    assert fire(timers, 9) == []
    assert fire(timers, 30) == ["a", "b1", "b2", "c"]
    assert (len(timers), timers.next_due()) == (1, 99)


def test_a_cancelled_one_does_not_fire_and_is_not_due() -> None:
    timers = Timers()
    first, second = timers.add(10, note, "a"), timers.add(20, note, "b")
    timers.cancel(first)
    timers.cancel(first)
    timers.cancel(None)
    assert (len(timers), timers.next_due()) == (1, 20)
    assert fire(timers, 20) == ["b"]
    timers.cancel(second)
    assert (len(timers), timers.next_due()) == (0, None)


def test_many_cancelled_ones_are_swept() -> None:
    timers = Timers()
    kept = timers.add(5, note, "kept")
    for number in range(10 * SWEEP_MIN):
        timers.cancel(timers.add(1_000 + number, note, "x"))
        assert len(timers._heap) <= 2 * SWEEP_MIN + 2
        assert len(timers) == 1
    assert kept.callback is not None
    assert fire(timers, 10**6) == ["kept"]

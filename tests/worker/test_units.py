"""The worker's small parts by themselves."""

import os
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from instructors.memory import NoRoomNow
from protocol.enums import HeldState
from protocol.errors import OutOfMemory
from protocol.messages import Assign
from worker import hardware, parent
from worker.backoff import Backoff
from worker.delivery import Outbox, Outgoing
from worker.jobs import RESULTS_MAX, HeldJobs, Job
from worker.pulse import Pulse
from worker.residency import Residency

# Back-off and pulse


def test_backoff_doubles_and_forgives() -> None:
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert backoff.after(31) == 0.2
    assert backoff.after(1) == 0.4


def test_pulse_is_shared_through_its_file() -> None:
    ours = Pulse.create()
    theirs = Pulse(os.dup(ours.fd))
    ours.reset()
    assert theirs.is_loading
    theirs.ready()
    assert (ours.is_loading, ours.busy_since_ns, ours.age_ms) == (False, 0, 0)
    theirs.beat()
    time.sleep(0.02)
    assert 15 <= ours.age_ms < 1000
    with theirs.loading():
        assert ours.is_loading
    assert not ours.is_loading


class Clock:
    """Stands in for the module `time` in worker.parent."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(parent, "time", clock)
    return clock


def ticks_until_hung(watch: parent.Watch, clock: Clock, tick_s: float, ticks_max: int = 100_000) -> float | None:
    for count in range(1, ticks_max):
        clock.now += tick_s
        if watch.hung():
            return count * tick_s
    return None


def test_watch_knows_two_limits(clock: Clock) -> None:
    pulse = Pulse.create()
    pulse.beat()
    watch = parent.Watch(pulse, quantum_ms_max=120_000, load_ms_max=600_000)
    assert ticks_until_hung(watch, clock, 0.25) == pytest.approx(120, abs=1)
    with pulse.loading():
        assert ticks_until_hung(watch, clock, 0.25) == pytest.approx(600, abs=1)


def test_watch_sees_nothing_wrong_with_the_idle_and_the_busy(clock: Clock) -> None:
    pulse = Pulse.create()
    watch = parent.Watch(pulse, 1000, 1000)
    assert ticks_until_hung(watch, clock, 0.25, 1000) is None
    for _ in range(100):
        pulse.beat()
        clock.now += 0.9
        assert not watch.hung()


def test_watch_does_not_blame_the_child_for_its_own_sleep(clock: Clock) -> None:
    pulse = Pulse.create()
    pulse.beat()
    watch = parent.Watch(pulse, 1000, 1000)
    clock.now += 3600
    assert not watch.hung()


# Held jobs


def job(job_id: str = "j", attempt: int = 1) -> Job:
    fields = {"job_id": job_id, "attempt": attempt, "action": "a", "data": {}, "tenant": "t", "request_id": "r"}
    return Job(Assign(**fields, fingerprint=bytes(32)), [])


def test_held_jobs_count_results_and_room() -> None:
    held = HeldJobs(slots=1)
    first = job()
    assert held.admit(first)
    assert not held.admit(job())
    held.finish(first, [b"x" * 100])
    assert not held.full
    held.acknowledge("j", 2)
    assert held.holds(first)
    held.acknowledge("j", 1)
    assert len(held) == 0


def test_an_acknowledgement_of_an_unfinished_job_is_ignored() -> None:
    held = HeldJobs(slots=1)
    held.admit(job())
    held.acknowledge("j", 1)
    assert len(held) == 1


def test_results_are_bounded_in_number_and_bytes() -> None:
    held = HeldJobs(slots=1)
    for number in range(RESULTS_MAX):
        assert not held.full
        one = job(f"j{number}")
        assert held.admit(one)
        held.finish(one, [b""])
    assert held.full
    held.cancel("j0", 1)
    assert not held.full
    many = [bytes(64 * 1024 * 1024)] * 8
    one = job("large")
    held.admit(one)
    held.finish(one, many)
    assert held.full


def test_a_newer_attempt_of_a_finished_job_gives_its_bytes_back() -> None:
    held = HeldJobs(slots=1)
    old = job(attempt=1)
    held.admit(old)
    held.finish(old, [bytes(64 * 1024 * 1024)] * 8)
    new = job(attempt=2)
    assert held.admit(new)
    assert old.cancelled
    assert not held.full
    assert held.holds(new)
    assert new.to_held().state is HeldState.ASSIGNED


# Outbox


def test_outbox_wakes_once_for_many() -> None:
    import select

    outbox = Outbox()
    items = [Outgoing(job(), True, [b""]) for _ in range(5)]
    for item in items:
        outbox.put(item)
    assert select.select([outbox.fd], [], [], 0)[0]
    outbox.clear()
    assert outbox.take() == items
    assert not select.select([outbox.fd], [], [], 0)[0]
    outbox.put(items[0])
    assert select.select([outbox.fd], [], [], 0)[0]


def test_an_outbox_that_is_cleared_before_its_byte_came_wakes_for_the_next() -> None:
    import select

    outbox = Outbox()
    outbox.awake = True  # another thread is between this and the write
    outbox.clear()
    assert not outbox.awake
    item = Outgoing(job(), True, [b""])
    outbox.put(item)
    assert select.select([outbox.fd], [], [], 0)[0]
    assert outbox.take() == [item]


# Residency


@dataclass
class Thing:
    name: str
    nbytes: int


def test_least_recently_used_goes_first() -> None:
    released: list[int] = []
    residency = Residency(100, lambda: released.append(1))
    for name in "abc":
        residency.load(name, 30, lambda name=name: Thing(name, 30))
        residency.unpin(name)
    residency.get("a")
    residency.unpin("a")
    residency.load("d", 30, lambda: Thing("d", 30))
    assert residency.names == ["c", "a", "d"]
    assert residency.get("b") is None
    assert released == [1]


def test_the_estimate_makes_room_before_loading() -> None:
    residency = Residency(100, lambda: None)
    residency.load("a", 60, lambda: Thing("a", 60))
    residency.unpin("a")

    def load() -> Thing:
        assert residency.names == []
        return Thing("b", 10)

    residency.load("b", 50, load)


def test_what_is_in_use_stays_and_what_does_not_fit_beside_it_waits() -> None:
    residency = Residency(100, lambda: None)
    residency.load("a", 80, lambda: Thing("a", 80))
    with pytest.raises(NoRoomNow):
        residency.load("b", 80, lambda: Thing("b", 80))
    residency.unpin("a")
    residency.load("b", 80, lambda: Thing("b", 80))
    assert residency.names == ["b"]


@dataclass
class Module:
    """Stands for a part on a device, which the test machine lacks."""

    nbytes: int
    device: str = "gpu"

    def move(self, device: str) -> None:
        self.device = device


@dataclass
class Made:
    name: str
    parts: dict[str, Module]


def test_shared_parts_count_once_and_stay_while_one_needs_them() -> None:
    residency = Residency(100, lambda: None)
    encoder = Module(40)
    residency.load("a", 70, lambda: Made("a", {"encoder": encoder, "unet a": Module(30)}))
    residency.unpin("a")
    assert residency.part("encoder") is encoder
    residency.load("b", 30, lambda: Made("b", {"encoder": encoder, "unet b": Module(30)}))
    assert (residency.names, residency.nbytes) == (["a", "b"], 100)
    residency.load("c", 20, lambda: Made("c", {"unet c": Module(20)}))
    assert (residency.names, residency.nbytes) == (["b", "c"], 90)
    assert residency.part("encoder") is encoder
    assert residency.part("unet a") is None


def test_what_a_device_evicts_is_set_aside_in_memory_and_comes_back() -> None:
    residency = Residency(100, lambda: None, device="gpu", aside_bytes=130)
    parts = {name: {f"unet {name}": Module(60)} for name in "abcd"}
    loads: list[str] = []

    def use(name: str) -> None:
        if residency.get(name) is None:
            loads.append(name)
            residency.load(name, 60, lambda: Made(name, parts[name]))
        residency.unpin(name)

    for name in "abab":
        use(name)
    assert loads == ["a", "b"]  # each came from the disk once
    assert {name: parts[name][f"unet {name}"].device for name in "ab"} == {"a": "cpu", "b": "gpu"}
    assert (residency.nbytes, residency.aside_nbytes) == (60, 60)
    use("c")
    use("d")  # now a, b and c are too much for the memory aside: the oldest goes
    assert residency.aside_nbytes == 120
    use("a")
    assert loads == ["a", "b", "c", "d", "a"]


def test_a_shared_part_stays_on_the_device_when_one_of_its_users_is_set_aside() -> None:
    residency = Residency(100, lambda: None, device="gpu", aside_bytes=1000)
    encoder = Module(40)
    for name in "ab":
        residency.load(name, 30, lambda name=name: Made(name, {"encoder": encoder, f"unet {name}": Module(30)}))
        residency.unpin(name)
    residency.load("c", 30, lambda: Made("c", {"unet c": Module(30)}))
    assert residency.names == ["b", "c"]
    assert encoder.device == "gpu"


def test_a_part_that_was_loaded_twice_counts_twice_and_leaves_the_device() -> None:
    residency = Residency(200, lambda: None, device="gpu", aside_bytes=1000)
    parts = {name: {"encoder": Module(40), f"unet {name}": Module(30)} for name in "ab"}

    def use(name: str) -> None:
        if residency.get(name) is None:
            residency.load(name, 70, lambda: Made(name, parts[name]))
        residency.unpin(name)

    use("a")
    residency.evict_unused()
    use("b")  # loads its own encoder, for that of a is set aside
    use("a")
    assert residency.nbytes == 140
    residency.load("c", 100, lambda: Made("c", {"unet c": Module(100)}))
    assert residency.names == ["a", "c"]
    assert {module.device for module in parts["b"].values()} == {"cpu"}
    assert residency.nbytes == 170


def test_what_is_kept_is_not_evicted_but_may_be_told_to_go() -> None:
    residency = Residency(100, lambda: None)
    for name in "ab":
        residency.load(name, 50, lambda name=name: Thing(name, 50))
        residency.unpin(name)
    residency.keep("a")
    assert (residency.kept, residency.is_kept("a"), residency.is_kept("b")) == ({"a"}, True, False)
    residency.load("c", 50, lambda: Thing("c", 50))
    assert residency.names == ["a", "c"]  # though it was used longest ago
    residency.keep("a", False)
    residency.retire("a")
    assert (residency.names, residency.kept) == (["c"], frozenset())


def test_what_is_told_to_go_while_it_is_used_goes_then_unless_it_is_wanted_again() -> None:
    residency = Residency(100, lambda: None)
    for name in "ab":
        residency.load(name, 10, lambda name=name: Thing(name, 10))
        residency.retire(name)
    assert residency.keys_of("a") == ["a"]
    residency.keep("b")
    for name in "ab":
        residency.unpin(name)
    assert residency.names == ["b"]


def test_room_is_held_for_what_is_loaded_elsewhere() -> None:
    residency = Residency(100, lambda: None)
    residency.reserve("a", 70)
    with pytest.raises(NoRoomNow):
        residency.load("b", 40, lambda: Thing("b", 40))
    with pytest.raises(NoRoomNow):
        residency.reserve("c", 40)
    residency.load("b", 30, lambda: Thing("b", 30))
    residency.load("a", 70, lambda: Thing("a", 70))  # it has come
    assert residency.names == ["b", "a"]
    residency.unpin("a")
    residency.reserve("c", 70)
    residency.release("c")  # and this never will
    residency.load("d", 70, lambda: Thing("d", 70))
    assert residency.names == ["b", "d"]


def test_who_has_a_part_is_told() -> None:
    residency = Residency(100, lambda: None, device="gpu", aside_bytes=1000)
    encoder = Module(10)
    residency.load("a", 60, lambda: Made("a", {"encoder": encoder, "unet a": Module(50)}))
    residency.unpin("a")
    residency.load("b", 90, lambda: Made("b", {"encoder": encoder, "unet b": Module(80)}))
    assert residency.holders("encoder") == {"a": False, "b": True}
    assert residency.holders("unet a") == {"a": False}
    assert residency.holders("unet c") == {}


def test_too_large_alone_and_failing_loads() -> None:
    residency = Residency(100, lambda: None)
    with pytest.raises(OutOfMemory):
        residency.load("a", 10, lambda: Thing("a", 101))
    with pytest.raises(ValueError, match="broken"):
        residency.load("b", 10, lambda: (_ for _ in ()).throw(ValueError("broken")))
    assert residency.names == []


def test_out_of_memory_evicts_everything_and_tries_once_more() -> None:
    residency = Residency(100, lambda: None)
    residency.load("a", 10, lambda: Thing("a", 10))
    residency.unpin("a")
    calls: list[list[str]] = []

    def load() -> Thing:
        calls.append(list(residency.names))
        if len(calls) == 1:
            raise MemoryError
        return Thing("b", 10)

    residency.load("b", 10, load)
    assert calls == [["a"], []]
    with pytest.raises(MemoryError):
        Residency(100, lambda: None).load("c", 10, lambda: (_ for _ in ()).throw(MemoryError()))


# Hardware


def test_gpus_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_nvidia_smi_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.count_gpus() == 4
    for value, count in (("", 0), ("-1", 0), ("0,2", 2), ("GPU-8f,GPU-9a,GPU-1b", 3), ("0,1,2,3,4,5", 4)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert hardware.count_gpus() == count


def test_nvidia_smi_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.count_gpus() == 2
    program.write_text("#!/bin/sh\nexit 9\n")
    assert hardware._nvidia_smi_count() is None


@pytest.mark.parametrize(
    ("torch", "torchvision", "conflict"),
    [
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0+cpu", "0.28.0+cu130", True),
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0", "0.28.0", False),
        ("2.13.0+cu130", "0.28.0+cu130", False),
        ("2.13.0+cpu", None, False),
    ],
)
def test_torchvision_beside_torch(
    monkeypatch: pytest.MonkeyPatch, torch: str, torchvision: str | None, conflict: bool
) -> None:
    def version(name: str) -> str:
        found = {"torch": torch, "torchvision": torchvision}[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(hardware.metadata, "version", version)
    assert (hardware.torchvision_conflict() is not None) == conflict


def test_the_cpu_and_what_is_no_device() -> None:
    device = hardware.find("cpu")
    assert device.memory_total > device.memory_free() > 0
    assert 0 < device.default_budget < device.memory_total
    for name in ("tpu", "cuda:x", "cuda:", "", "cuda:1000"):
        with pytest.raises(hardware.NoSuchDevice):
            hardware.find(name)

"""Runners: real processes, each with a real model."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from instructors.pipelines.onnx import runner as runner_module
from instructors.pipelines.onnx.facts import DTYPES, Array, Finished
from instructors.pipelines.onnx.runner import Runner, RunnerSpec
from protocol.errors import (
    AtelierError,
    Forbidden,
    InvalidRequest,
    ModelInvalid,
    OutOfMemory,
    QueueFull,
    TimeoutRun,
    Unavailable,
)
from protocol.limits import MIB
from tests.instructors import onnx_models as models
from tests.instructors.test_onnx_graph import mutants

ROOT = Path(__file__).parents[2]
FOR_EVER = 10**12  # turns of a loop

Start = Callable[..., Runner]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts runners that are closed at the end."""
    started: list[Runner] = []

    def run(path: Path, **settings: Any) -> Runner:
        started.append(Runner.start(RunnerSpec(path, **{"intra_op_threads": 1, **settings})))
        return started[-1]

    yield run
    for runner in started:
        runner.close()


@pytest.fixture
def looping(tmp_path: Path) -> Path:
    return models.loop(tmp_path / "model.onnx")


def turns(count: int) -> dict[str, Array]:
    return {"x": np.array([count, 7])}


def collect(runner: Runner, count: int) -> list[Finished]:
    """The next so many batches that end, in their order; waits as the worker does, for `fileno`."""
    finished: list[Finished] = []
    while len(finished) < count:
        select.select([runner], [], [], 0.5)
        finished += runner.receive()
    return finished


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children() -> list[psutil.Process]:
    """The runners' processes of this one."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):  # it ended just now
            found += [one] if "instructors.pipelines.onnx.child" in one.cmdline() else []
    return found


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_type_comes_back_as_it_was_sent(dtype: str, start: Start, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(DTYPES[dtype])
    if dtype == "string":
        array = np.array([["", "ä"], ["日本", "a\0b"]], object)
    runner = start(models.identity(tmp_path / "model.onnx", dtype))
    assert runner.facts.inputs[0].told == f"{dtype} [batch, ?]"
    back = runner.run({"x": array})["y"]
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_strings_are_computed_with(start: Start, tmp_path: Path) -> None:
    runner = start(models.upper_case(tmp_path / "model.onnx"))
    assert runner.run({"x": np.array(["abc", "", "dé"])})["y"].tolist() == ["ABC", "", "DÉ"]


def test_a_model_computes_what_it_should_for_each_batch_size(start: Start, tmp_path: Path) -> None:
    runner = start(models.affine(tmp_path / "model.onnx", 3, 1))
    for rows, columns in ((1, 1), (32, 5), (7, 128), (1, 1)):
        x = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
        np.testing.assert_allclose(runner.run({"x": x})["y"], 3 * x + 1, rtol=1e-6)


def test_only_the_outputs_asked_for_come(start: Start, tmp_path: Path) -> None:
    runner = start(models.two_inputs(tmp_path / "model.onnx"))
    tensors = {"a": np.full((1, 3), 2, np.float32), "b": np.full((1, 3), 5)}
    assert {name: array[0, 0] for name, array in runner.run(tensors).items()} == {"sum": 7, "product": 10}
    assert list(runner.run(tensors, ["product"])) == ["product"]


def test_weights_beside_the_model_are_found(start: Start, tmp_path: Path) -> None:
    runner = start(models.external(tmp_path / "model.onnx"))
    weights = np.fromfile(tmp_path / "weights.bin", np.float32).reshape(64, 64)
    x = np.ones((2, 64), np.float32)
    np.testing.assert_allclose(runner.run({"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-5)


def test_tensors_of_64_mib_travel_both_ways(start: Start, tmp_path: Path) -> None:
    runner = start(models.identity(tmp_path / "model.onnx"))
    x = np.random.default_rng(0).integers(0, 2**31, (4, 4 * MIB), np.int32).view(np.float32)
    assert x.nbytes == 64 * MIB
    back = runner.run({"x": x})["y"]
    assert back.base is None  # read into, not copied
    assert (back.view(np.int32) == x.view(np.int32)).all()


def test_the_facts_say_where_it_really_runs(start: Start, tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx")
    facts = start(path).facts
    assert facts.providers == facts.asked == ("CPUExecutionProvider",)
    assert not facts.fell_back
    assert 1 * MIB < facts.nbytes < 200 * MIB
    facts = start(path, device="cuda:0").facts
    assert facts.asked == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert facts.fell_back is ("CUDAExecutionProvider" not in facts.providers)


def test_a_provider_whose_libraries_are_missing_is_done_without(start: Start, tmp_path: Path) -> None:
    path = models.affine(tmp_path / "model.onnx", 2, 0)
    runner = start(path, device="cuda:0", providers=("TensorrtExecutionProvider", "NoSuchExecutionProvider"))
    assert runner.facts.fell_back
    assert "NoSuchExecutionProvider" not in runner.facts.providers
    assert runner.run({"x": np.ones((1, 1), np.float32)})["y"] == 2


def test_what_the_model_cannot_compute_is_told_without_paths(start: Start, tmp_path: Path) -> None:
    runner = start(models.two_inputs(tmp_path / "model.onnx"))
    with pytest.raises(InvalidRequest, match="cannot compute with these inputs") as caught:
        runner.run({"a": np.ones((2, 3), np.float32), "b": np.ones((3, 3), np.int64)})
    assert "/" not in caught.value.message
    assert runner.alive
    assert runner.run({"a": np.ones((1, 3), np.float32), "b": np.ones((1, 3), np.int64)})["sum"][0, 0] == 2


def test_a_batch_that_needs_too_much_memory_harms_nobody(start: Start, tmp_path: Path) -> None:
    runner = start(models.large_product(tmp_path / "model.onnx"), memory_bytes=256 * MIB)
    with pytest.raises(OutOfMemory):
        runner.run({"x": np.array([9000])})
    assert runner.run({"x": np.array([10])})["y"] == 10


def test_two_instances_compute_at_a_time(start: Start, looping: Path) -> None:
    runner = start(looping, instances=2)
    runner.send(1, turns(FOR_EVER))
    runner.send(2, turns(5))
    assert [one.batch_id for one in collect(runner, 1)] == [2]  # while the first is on its way
    assert runner.in_flight == 1


def test_one_instance_computes_one_after_the_other(start: Start, looping: Path) -> None:
    runner = start(looping, run_timeout_s=0.5)
    runner.send(1, turns(FOR_EVER))
    runner.send(2, turns(5))
    first, second = collect(runner, 2)
    assert (first.batch_id, second.batch_id) == (1, 2)
    assert type(first.error) is TimeoutRun
    assert second.tensors is not None


def test_a_run_that_takes_too_long_is_ended(start: Start, looping: Path) -> None:
    runner = start(looping, run_timeout_s=0.3)
    with pytest.raises(TimeoutRun, match=r"longer than the 0\.3 s"):
        runner.run(turns(FOR_EVER))
    assert runner.alive
    np.testing.assert_array_equal(runner.run(turns(5))["y"], [5, 7])


def test_a_run_that_cannot_be_ended_ends_the_process(start: Start, tmp_path: Path) -> None:
    runner = start(models.slow_node(tmp_path / "model.onnx"), run_timeout_s=0.5)
    assert runner.run({"x": np.array([100])})["y"] == 100
    runner.send(1, {"x": np.array([1_000_000])})  # half an hour
    runner.send(2, {"x": np.array([10])})
    ended = {one.batch_id: one.error for one in collect(runner, 2)}
    assert type(ended[1]) is TimeoutRun
    assert type(ended[2]) is Unavailable
    assert not runner.alive


def test_a_process_that_answers_nothing_is_noticed(
    start: Start, looping: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "HUNG_GRACE_S", 0.1)
    runner = start(looping, run_timeout_s=0.1)
    os.kill(runner.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutRun, match="does not answer"):
        runner.run(turns(5))
    assert not runner.alive
    assert gone(runner.pid)


def test_all_batches_of_a_killed_process_end_once_and_may_be_tried_again(start: Start, looping: Path) -> None:
    runner = start(looping)
    for number in range(5):
        runner.send(number, turns(FOR_EVER))
    os.kill(runner.pid, signal.SIGKILL)
    ended = collect(runner, 5)
    assert sorted(one.batch_id for one in ended) == [0, 1, 2, 3, 4]
    assert all(type(one.error) is Unavailable and one.error.retryable for one in ended)
    assert not runner.alive
    assert runner.receive() == []
    with pytest.raises(Unavailable):
        runner.send(6, turns(1))
    assert start(looping).run(turns(1))["y"][0] == 1


def test_answers_that_came_before_the_end_are_not_lost(start: Start, looping: Path) -> None:
    runner = start(looping)
    runner.send(1, turns(1))
    assert select.select([runner], [], [], 10)[0]
    runner.send(2, turns(FOR_EVER))
    os.kill(runner.pid, signal.SIGKILL)
    eventually(lambda: gone(runner.pid))
    first, second = collect(runner, 2)
    assert (first.batch_id, first.error) == (1, None)
    assert type(second.error) is Unavailable


def test_an_idle_process_that_dies_is_noticed(start: Start, looping: Path) -> None:
    runner = start(looping)
    os.kill(runner.pid, signal.SIGKILL)
    assert select.select([runner], [], [], 10)[0]
    assert runner.receive() == []
    assert not runner.alive
    assert not select.select([runner], [], [], 0)[0]  # the worker does not spin on it


def test_sending_never_waits_for_a_process_that_reads_nothing(start: Start, looping: Path) -> None:
    runner = start(looping)
    os.kill(runner.pid, signal.SIGSTOP)
    x = np.arange(MIB // 2)
    for number in range(30):
        runner.send(number, {"x": x + number})  # 4 MiB each
    os.kill(runner.pid, signal.SIGCONT)
    for one in collect(runner, 30):
        assert one.tensors is not None
        np.testing.assert_array_equal(one.tensors["y"], x + one.batch_id)


def test_answers_that_nobody_reads_do_not_stop_the_sending(start: Start, tmp_path: Path) -> None:
    runner = start(models.identity(tmp_path / "model.onnx"), instances=2)
    x = np.zeros((1, MIB), np.float32)
    for number in range(40):
        runner.send(number, {"x": x + number})
    ended = collect(runner, 40)
    assert sorted(one.batch_id for one in ended) == list(range(40))
    assert all(one.tensors is not None and (one.tensors["y"] == one.batch_id).all() for one in ended)


def test_what_waits_is_bounded(start: Start, looping: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "BATCHES_MAX", 3)
    monkeypatch.setattr(runner_module, "IN_FLIGHT_BYTES_MAX", 100)
    runner = start(looping)
    runner.send(1, {"x": np.full(1000, FOR_EVER)})  # one always may, however large
    with pytest.raises(QueueFull):
        runner.send(2, turns(1))
    runner.close()
    runner = start(looping)
    for number in range(3):
        runner.send(number, {"x": np.array([FOR_EVER])})
    with pytest.raises(QueueFull):
        runner.send(3, {"x": np.array([1])})
    assert runner.in_flight == 3


def test_waiting_for_one_batch_keeps_the_others(start: Start, looping: Path) -> None:
    runner = start(looping)
    runner.send(7, turns(3))
    assert runner.run(turns(4))["y"][0] == 4
    assert [one.batch_id for one in runner.receive()] == [7]


def test_closing_ends_the_process_even_while_it_computes(start: Start, looping: Path) -> None:
    runner = start(looping)
    runner.send(1, turns(FOR_EVER))
    runner.close()
    assert gone(runner.pid)
    assert not runner.alive


def test_a_signal_to_the_group_does_not_end_it(start: Start, looping: Path) -> None:
    runner = start(looping)
    os.kill(runner.pid, signal.SIGINT)
    os.kill(runner.pid, signal.SIGTERM)
    assert runner.run(turns(2))["y"][0] == 2


PARENT = """
import sys, time
from pathlib import Path
import numpy as np
from instructors.pipelines.onnx.runner import Runner, RunnerSpec
runner = Runner.start(RunnerSpec(Path(sys.argv[1])))
runner.send(1, {"x": np.array([10**12])})
print(runner.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_with_its_parent_even_while_it_computes(looping: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(looping)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    eventually(lambda: gone(pid))


def test_the_child_imports_nothing_heavy() -> None:
    script = "import sys, instructors.pipelines.onnx.child; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "diffusers", "transformers", "pydantic", "onnx", "structlog", "zmq", "PIL", "scipy", "psutil"}
    assert heavy & set(done.stdout.split()) == set()


def test_the_memory_of_the_parent_does_not_grow(start: Start, tmp_path: Path) -> None:
    runner = start(models.identity(tmp_path / "model.onnx"), instances=2)
    x = np.zeros((1, MIB), np.float32)

    def batches(count: int) -> int:
        for number in range(count):
            runner.send(number, {"x": x})
            if runner.in_flight >= 4:
                collect(runner, 1)
        collect(runner, runner.in_flight)
        return psutil.Process().memory_info().rss + psutil.Process(runner.pid).memory_info().rss

    before = batches(50)
    assert batches(300) - before < 64 * MIB  # of 1.2 GB each way


def refusal(path: Path, error: type[AtelierError], **settings: Any) -> str:
    with pytest.raises(error) as caught:
        Runner.start(RunnerSpec(path, **settings))
    assert str(path.parent) not in caught.value.message
    return caught.value.message


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert "cannot be read" in refusal(path, ModelInvalid)
    path.write_bytes(b"")
    assert "empty" in refusal(path, ModelInvalid)
    assert "custom operator" in refusal(models.custom_operator(path), ModelInvalid)
    assert "outside" in refusal(models.external(path, "../weights.bin"), Forbidden)


def test_what_onnxruntime_does_not_take_is_told_with_its_reason(tmp_path: Path) -> None:
    path = models.identity(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes().replace(b"Identity", b"Identitx"))
    message = refusal(path, ModelInvalid)
    assert "Identitx" in message
    assert "/" not in message


def test_a_model_that_needs_too_much_memory_to_load_is_told_so(tmp_path: Path) -> None:
    refusal(models.mlp(tmp_path / "model.onnx", (2000, 2000, 10)), OutOfMemory, memory_bytes=8 * MIB)


def test_loading_has_a_time_limit(tmp_path: Path) -> None:
    assert "within 0.01 s" in refusal(models.mlp(tmp_path / "model.onnx"), TimeoutRun, load_timeout_s=0.01)
    assert children() == []


@pytest.mark.parametrize(("number", "error"), [(signal.SIGKILL, OutOfMemory), (signal.SIGSEGV, ModelInvalid)])
def test_a_crash_while_loading_is_the_models_fault(number: int, error: type[AtelierError], tmp_path: Path) -> None:
    def crash() -> None:
        eventually(lambda: bool(children()))
        children()[0].send_signal(number)

    thread = threading.Thread(target=crash)
    thread.start()
    refusal(models.mlp(tmp_path / "model.onnx"), error)
    thread.join()


def test_damaged_models_run_or_are_refused(tmp_path: Path) -> None:
    """Those of the damaged files that look whole, given to onnxruntime."""
    path = models.mlp(tmp_path / "model.onnx", (3, 3))
    tried = ran = 0
    for data in mutants(path.read_bytes(), 60, seed=1):
        path.write_bytes(data)
        try:
            runner = Runner.start(RunnerSpec(path, intra_op_threads=1, run_timeout_s=5))
        except (ModelInvalid, Forbidden, OutOfMemory):
            tried += 1
            continue
        try:
            runner.run({"x": np.ones((1, 3), np.float32)})
            ran += 1
        except AtelierError:
            tried += 1
        finally:
            runner.close()
    assert tried
    assert ran

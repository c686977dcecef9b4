"""An onnxruntime session in the runner's process: its providers, its settings, its runs, and what its errors mean."""

import ctypes
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from instructors.pipelines.onnx.facts import BFLOAT16, STRING, Array, Facts, RunnerSpec, TensorInfo, checked_dtype
from instructors.pipelines.onnx.optimised import KeptGraph
from protocol.errors import AtelierError, InternalError, InvalidRequest, ModelInvalid, OutOfMemory
from protocol.limits import KIB, MIB

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
BFLOAT16_TYPE = 16  # TensorProto.BFLOAT16
SILENT = 4  # logs only what is fatal: every other problem is raised, and told through the socket
KEPT_BYTES_MAX = 1024 * MIB  # larger models are mostly weights, and a graph with its weights ends at 2 GiB
REASON_LENGTH_MAX = 300
SOURCE_PLACE = re.compile(r"\S+\.(?:cc|cpp|cu|h):\d+ .*?\)(?: const)?(?:::<lambda\(.*?\)>)?(?: \[with [^]]*\])? ")
ANY_PATH = re.compile(r"(?<!\w)(?:[A-Za-z]:)?[/\\][^\s:'\",()]*[/\\][^\s:'\",()]*(?::\d+)?")


class DeviceFailed(Exception):
    """The device is of no use to this process any more."""


class Session:
    """A loaded model. Several threads may call `run`: they share the session, and with it the weights."""

    def __init__(self, spec: RunnerSpec, files: Sequence[Path]) -> None:
        """`files`: the model's, the graph's first. Raises ModelInvalid or OutOfMemory."""
        began = time.perf_counter()
        onnxruntime.set_default_logger_severity(SILENT)
        asked = _asked(spec)
        if spec.device != "cpu":
            onnxruntime.preload_dlls()
        ram, gpu = _ram_bytes(peak=False), _gpu_bytes(spec.device)
        with blamed(ModelInvalid):
            self._session, from_cache = _load(spec, asked, files)
        inputs, outputs = _infos(self._session.get_inputs()), _infos(self._session.get_outputs())
        self.bits = frozenset(info.name for info in (*inputs, *outputs) if info.dtype == BFLOAT16)
        if self.bits and any(info.dtype == STRING for info in (*inputs, *outputs)):
            raise ModelInvalid("It has both bfloat16 and strings, which onnxruntime does not take together.")
        self._names = [info.name for info in outputs]
        providers = tuple(self._session.get_providers())  # the truth: get_device() tells what the wheel could do
        on_gpu = gpu > 0 and CUDA in providers
        self.facts = Facts(
            inputs=inputs,
            outputs=outputs,
            providers=providers,
            asked=asked,
            load_ms=(time.perf_counter() - began) * 1000,
            nbytes=max(_gpu_bytes(spec.device) - gpu if on_gpu else _ram_bytes(peak=True) - ram, 0),
            from_cache=from_cache,
        )

    def run(self, tensors: Mapping[str, Array], outputs: Sequence[str] | None, options: Any) -> dict[str, Array]:
        """The outputs asked for, else all. Raises InvalidRequest, OutOfMemory, InternalError or DeviceFailed.

        Plain `run`: on a CPU it copies no more than a run with IO binding, whose set-up takes longer.
        """
        names = list(outputs or self._names)
        with blamed(InvalidRequest):
            values = self._with_bits if self.bits else self._session.run
            return dict(zip(names, values(names, tensors, options), strict=True))

    def _with_bits(self, names: list[str], tensors: Mapping[str, Array], options: Any) -> list[Array]:
        """A run by onnxruntime's own values, as numpy has no bfloat16."""
        value = onnxruntime.OrtValue
        feed = {
            name: value.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16_TYPE)
            if name in self.bits
            else value.ortvalue_from_numpy(array)
            for name, array in tensors.items()
        }
        return [_numpy(found) for found in self._session.run_with_ort_values(names, feed, options)]


def _numpy(value: Any) -> Array:
    if value.element_type() != BFLOAT16_TYPE:
        array: Array = value.numpy()
        return array
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, np.uint16).reshape(value.shape())


def _asked(spec: RunnerSpec) -> tuple[str, ...]:
    """CPU stands at the end of all: what the others cannot compute runs there."""
    if spec.providers is not None:
        return (*(name for name in spec.providers if name != CPU), CPU)
    return (CPU,) if spec.device == "cpu" else (CUDA, CPU)


def _load(spec: RunnerSpec, asked: Sequence[str], files: Sequence[Path]) -> tuple[Any, bool]:
    """The session, and whether it has the graph of an earlier time."""
    there = onnxruntime.get_available_providers()
    providers = [(name, _provider_options(name, spec)) for name in asked if name in there]
    if TENSORRT in dict(providers):
        with suppress(Exception):  # the wheel has the provider, but perhaps nobody its libraries
            return _session(files[0], spec, providers), False
        providers = [(name, options) for name, options in providers if name != TENSORRT]
    kept = _kept(spec, [name for name, _ in providers], files)
    if kept is not None:
        with suppress(Exception):  # whatever is wrong with what was kept: it is made again
            if (path := kept.find()) is not None:
                return _session(path, spec, providers, optimised=True, beside=len(files) > 1), True
        made = kept.make(lambda part: _session(files[0], spec, providers, keep=part))
        if made is not None:
            return made, False
    return _session(files[0], spec, providers), False


def _kept(spec: RunnerSpec, providers: Sequence[str], files: Sequence[Path]) -> KeptGraph | None:
    """Where its optimised graph is kept; None where it is not."""
    if spec.cache is None or spec.graph_optimization == "none":
        return None
    if sum(file.stat().st_size for file in files) > KEPT_BYTES_MAX:
        return None
    parts = (onnxruntime.get_version_string(), onnxruntime.get_build_info(), providers, spec.graph_optimization)
    return KeptGraph(spec.cache, files, parts)


def _session(
    path: Path,
    spec: RunnerSpec,
    providers: Any,
    *,
    optimised: bool = False,
    beside: bool = False,
    keep: Path | None = None,
) -> Any:
    """`optimised`: it was kept; `beside`: it still names weights that lie beside the model; `keep`: where the optimised
    graph is to be written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    level = "none" if optimised else spec.graph_optimization
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    options.intra_op_num_threads = spec.intra_op_threads or max(_cores() // spec.instances, 1)
    options.inter_op_num_threads = spec.inter_op_threads
    if spec.inter_op_threads > 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = spec.arena
    options.enable_mem_pattern = False  # a plan for each shape ever seen: without the arena, gigabytes of them
    # Threads that spin while they wait take the cores from the worker, and from the other runners.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    model: str | bytes = str(path)
    if beside:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(spec.path.parent))
        model = path.read_bytes()
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    return onnxruntime.InferenceSession(
        model, options, providers=providers, enable_fallback=False, read_config_from_model=False
    )


def _provider_options(name: str, spec: RunnerSpec) -> dict[str, str]:
    if name == CPU:
        return {}
    options = {"device_id": spec.device.partition(":")[2] or "0"}
    if name == CUDA:
        options["cudnn_conv_algo_search"] = "HEURISTIC"  # the default tries all of them out at each new batch size
        options["arena_extend_strategy"] = "kSameAsRequested"
        if spec.memory_bytes is not None:
            options["gpu_mem_limit"] = str(spec.memory_bytes)
    return options


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _infos(nodes: Sequence[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(node.name, checked_dtype(node.name, node.type), tuple(node.shape)) for node in nodes)


@contextmanager
def blamed(on: type[AtelierError]) -> Iterator[None]:
    """What onnxruntime raises, as `on`, except where memory ran out, the device failed, or the fault is ours."""
    try:
        yield
    except (AtelierError, OSError):
        raise
    except Exception as error:
        text = str(error)
        print(f"onnxruntime: {type(error).__name__}: {text}", file=sys.stderr, flush=True)  # the worker's log
        if is_out_of_memory(error):
            raise OutOfMemory("The model needs more memory than there is.") from None
        if "CUDA failure" in text or "CUDNN failure" in text or type(error).__name__ == "DeviceReset":
            raise DeviceFailed from None
        if type(error).__module__.startswith("onnxruntime") or type(error) in (RuntimeError, ValueError):
            subject = (
                "The model cannot be loaded" if on is ModelInvalid else "The model cannot compute with these inputs"
            )
            raise on(f"{subject}: {reason(text)}") from None
        raise InternalError("Running the model failed.") from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether onnxruntime had no memory left, as it says so: bad_alloc, its arenas, the CUDA runtime."""
    text = str(error).lower()
    words = (
        "bad_alloc",
        "bad allocation",
        "failed to allocate memory",
        "out of memory",
        "available memory of",
        "cannot allocate",
    )
    return isinstance(error, MemoryError) or any(word in text for word in words)


def reason(text: str) -> str:
    """What onnxruntime said, without the model's path or the places in its own source, and not too long."""
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text.strip())
    said = SOURCE_PLACE.sub("", said)
    said = " ".join(ANY_PATH.sub("…", said).split())
    return said if len(said) <= REASON_LENGTH_MAX else said[:REASON_LENGTH_MAX] + "…"


def _ram_bytes(*, peak: bool) -> int:
    """What this process has of the machine's memory, or had at most."""
    if sys.platform != "linux":  # there is only the peak, on macOS in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith(name))


def _gpu_bytes(device: str) -> int:
    """What all processes have of the GPU's memory, this one's context included; 0 without one."""
    if device == "cpu":
        return 0
    try:
        runtime = ctypes.CDLL(f"libcudart.so.{onnxruntime.cuda_version.partition('.')[0]}")
    except (OSError, AttributeError):
        return 0
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    index = int(device.partition(":")[2] or 0)
    if runtime.cudaSetDevice(index) or runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)):
        return 0
    return total.value - free.value

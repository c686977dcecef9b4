"""Which loaded model answers for a name, and its replacement by a new one without a request that waits or is lost.

When the files of a model in use have changed, the new model is loaded and tried beside the old one, on a thread of its
own; requests go to the old one until then. If the new one fails, the old one stays. The old one leaves when the last
request that uses it has ended.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from instructors.memory import NoRoomNow
from instructors.models import Model, ModelFolder
from instructors.pipelines.onnx.facts import DTYPES, STRING, TensorInfo
from instructors.pipelines.onnx.runner import Runner, RunnerSpec
from instructors.pipelines.onnx.serving import Serving
from instructors.task import Place
from protocol.enums import ErrorCode
from protocol.errors import AtelierError, InternalError, OutOfMemory

LOOK_S = 1.0  # a model's files are looked at so often, at most
SERVED_MAX = 1000  # names
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
OLD_OVERHEAD = 1.5  # a loaded model takes more than its files; an estimate for making room

Seen = tuple[Any, ...]
Ended = Callable[[AtelierError | None], None]

log = structlog.get_logger("instructors.serving")


@dataclass(slots=True)
class _Current:
    """What answers for a name. `seen`: its files when they were last looked at."""

    model: Model
    seen: Seen
    look_at: float
    reloading: bool = False
    reloaded_at: float | None = None  # wall clock

    @property
    def key(self) -> str:
        return key_of(self.model)


class Loader:
    """Used on the device thread."""

    def __init__(self) -> None:
        self._current: dict[str | None, _Current] = {}

    def serving(self, model_id: str | None, place: Place) -> Serving:
        """The loaded model of this name; None: the only one there is. Raises what `ModelFolder.onnx` and `load` raise,
        and NoRoomNow."""
        current = self._current.get(model_id)
        if current is None:
            current = self._find(model_id, place)
        elif time.monotonic() >= current.look_at:
            self._look(model_id, current, place)
        model = current.model
        serving = place.resident(current.key, int(model.weights_nbytes * OLD_OVERHEAD), lambda: load(model, place))
        if serving.broken is not None:
            place.retire(current.key)
            self._current.pop(model_id, None)
        return serving

    def _find(self, model_id: str | None, place: Place) -> _Current:
        model = place.models.onnx(model_id)
        if len(self._current) >= SERVED_MAX:
            self._current.clear()
        current = _Current(model, _seen(model_id, model, place.models), time.monotonic() + LOOK_S)
        self._current[model_id] = current
        return current

    def _look(self, model_id: str | None, current: _Current, place: Place) -> None:
        """Have its files changed?"""
        current.look_at = time.monotonic() + LOOK_S
        if not current.reloading and _seen(model_id, current.model, place.models) != current.seen:
            self.reload(model_id, place)

    def reload(self, model_id: str | None, place: Place, ended: Ended | None = None) -> bool:
        """Load the model of this name anew beside the one in use, if its files are others now, and let it take over.
        `ended` is told, on the device thread, how that went. False: nothing of this name is in use, or it is being
        reloaded already."""
        current = self._current.get(model_id)
        if current is None or current.reloading:
            return False
        current.reloading = True
        threading.Thread(target=self._prepare, args=(model_id, current, place, ended), daemon=True).start()
        return True

    def _prepare(self, model_id: str | None, current: _Current, place: Place, ended: Ended | None) -> None:
        """On a thread of its own: find and load what is there now."""
        model, serving, problem, seen = current.model, None, None, current.seen
        try:
            seen = _seen(model_id, current.model, place.models)
            model = place.models.onnx(model_id)
            if key_of(model) != current.key:
                serving = _started(model, place)
        except AtelierError as error:
            problem = error
        except Exception:
            log.exception("a model cannot be reloaded", model_id=model_id)
            problem = InternalError()
        place.call_soon(lambda: self._take_over(model_id, current, model, serving, seen, problem, place, ended))

    def _take_over(
        self,
        model_id: str | None,
        current: _Current,
        model: Model,
        serving: Serving | None,
        seen: Seen,
        problem: AtelierError | None,
        place: Place,
        ended: Ended | None,
    ) -> None:
        current.reloading, current.seen = False, seen
        if serving is not None and self._current.get(model_id) is current:
            try:
                place.adopt(key_of(model), serving)
            except (AtelierError, NoRoomNow) as error:
                serving.runner.close()
                problem = error if isinstance(error, AtelierError) else OutOfMemory()
            else:
                serving.attach()
                old, current.model, current.reloaded_at = current.key, model, time.time()
                if all(other.key != old for other in self._current.values()):
                    place.retire(old)
                log.info("reloaded", model_id=model.model_id, content_hash=model.content_hash[:12])
        if problem is not None:
            log.error("the old model stays: the new one is not usable", model_id=model_id, problem=problem.message)
        if ended is not None:
            ended(problem)


def key_of(model: Model) -> str:
    """What a loaded model is called in the device's memory: changed files make another model."""
    return f"{model.model_id} {model.content_hash}"


def load(model: Model, place: Place) -> Serving:
    """Load a model in a process of its own. Raises what `Runner.start` raises, and ModelInvalid for its manifest."""
    serving = Serving(model, place, lambda: Runner.start(spec_of(model, place)))
    serving.attach()
    return serving


def _started(model: Model, place: Place) -> Serving:
    """Loaded and tried, for taking over; off the device thread, so nothing of it is watched yet."""
    serving = Serving(model, place, lambda: Runner.start(spec_of(model, place)))
    try:
        warm_up(serving)
    except AtelierError:
        serving.runner.close()
        raise
    return serving


def warm_up(serving: Serving) -> None:
    """One run with zeros: the first is slower, and a model that cannot compute at all is found out.

    Raises what the run ends with, but for InvalidRequest: open axes may not be of size 1.
    """
    runner = serving.runner
    assert isinstance(runner, Runner)
    try:
        runner.run({info.name: zeros(info) for info in runner.facts.inputs})
    except AtelierError as error:
        if error.code is not ErrorCode.INVALID_REQUEST:
            raise


def zeros(info: TensorInfo) -> np.ndarray[Any, Any]:
    """Nothing to be computed, of the type and shape of an input; open axes have the size 1."""
    shape = [side if isinstance(side, int) else 1 for side in info.shape]
    return np.full(shape, "", object) if info.dtype == STRING else np.zeros(shape, DTYPES[info.dtype])


def spec_of(model: Model, place: Place) -> RunnerSpec:
    """How the manifest wants it run on this device."""
    onnx, batching = model.manifest.onnx, model.manifest.batching
    return RunnerSpec(
        path=model.path / onnx.file,
        device=place.device,
        instances=batching.instances,
        providers=None if onnx.providers is None else tuple(PROVIDERS[name] for name in onnx.providers),
        intra_op_threads=onnx.intra_op_threads,
        inter_op_threads=onnx.inter_op_threads,
        arena=onnx.arena,
        graph_optimization=onnx.graph_optimization,
        cache=None if place.cache_dir is None else place.cache_dir / "onnx",
        memory_bytes=None if onnx.memory_mb_max is None else onnx.memory_mb_max * 1024 * 1024,
        run_timeout_s=onnx.run_timeout_ms / 1000,
    )


def _seen(model_id: str | None, model: Model, models: ModelFolder) -> Seen:
    """Changes when the files of a model do, or when the name means another version."""
    newest = models.versions(model_id)[-1:] if model_id is not None and ":" not in model_id else ()
    return (*newest, *_files(model.path))


def _files(folder: Path) -> list[tuple[str, int, int]]:
    try:
        entries = [(entry.name, entry.stat()) for entry in os.scandir(folder)]
    except OSError:  # it was deleted: what is loaded goes on
        return []
    return sorted((name, status.st_size, status.st_mtime_ns) for name, status in entries)

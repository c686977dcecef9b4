"""Which loaded model answers for a name, its loading, and its replacement without a request that is lost.

Models are loaded and tried on threads of their own, so that others are served meanwhile; whoever asks for a model that
is being loaded waits for the one process that does it. When the files of a model in use have changed, the new model is
loaded beside the old one; requests go to the old one until then. If the new one fails, the old one stays. The old one
leaves when the last request that uses it has ended.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
from protocol.errors import AtelierError, InternalError, Unavailable

LOOK_S = 1.0  # a model's files are looked at so often, at most
AGAIN_S = 10.0  # until what found no room beside the old is tried again, at the least
SERVED_MAX = 1000  # names
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
OLD_OVERHEAD = 1.5  # a loaded model takes more than its files; an estimate for making room

Seen = tuple[Any, ...]
Problem = AtelierError | NoRoomNow | None
Ready = Callable[[Problem], None]
Ended = Callable[[str, bool, Problem], None]  # (which model answers now, whether that is another one, why not)

log = structlog.get_logger("instructors.serving")


@dataclass(slots=True)
class _Current:
    """What answers for a name. `seen`: its files when they were last looked at."""

    model: Model
    seen: Seen
    look_at: float
    reloading: list[Ended] | None = None  # who waits for that
    late: list[Ended] = field(default_factory=list)  # who asked since the files were looked at: it looks once more

    @property
    def key(self) -> str:
        return key_of(self.model)


class Loader:
    """Used on the device thread."""

    def __init__(self) -> None:
        self._current: dict[str | None, _Current] = {}
        self._loading: dict[str, list[Ready]] = {}  # by key: who waits for it

    def serving(self, model_id: str | None, place: Place, ready: Ready) -> Serving | None:
        """The loaded model of this name; model_id None: the only one there is. None: it is being loaded, and `ready` is
        called when it is to be asked for again, or with what went wrong. Raises what `ModelFolder.onnx` raises, and
        NoRoomNow."""
        current = self._current.get(model_id)
        serving = None if current is None else place.at_hand(current.key)
        if current is None or (serving is None and current.key not in self._loading):
            current = self._find(model_id, place)  # as its files are now
            serving = place.at_hand(current.key)
        if serving is None:
            self._load(current.model, place, ready)
            return None
        if time.monotonic() >= current.look_at:
            self._look(model_id, current, place)
        assert isinstance(serving, Serving)
        if serving.broken is not None:
            place.retire(current.key)
            self._current.pop(model_id, None)
            raise serving.broken.with_traceback(None)  # whoever waits for its end would keep it here
        return serving

    def _find(self, model_id: str | None, place: Place) -> _Current:
        seen = _seen(model_id, place.models.onnx(model_id), place.models)
        model = place.models.onnx(model_id)  # read after that, so that no change between goes unseen
        if len(self._current) >= SERVED_MAX:
            self._current.clear()
        current = _Current(model, seen, time.monotonic() + LOOK_S)
        self._current[model_id] = current
        return current

    def _load(self, model: Model, place: Place, ready: Ready, *, again: bool = False) -> None:
        """Load a model on a thread of its own, unless that is under way. `again`: to take another's place. Raises
        NoRoomNow and Unavailable."""
        key = key_of(model)
        waiting = self._loading.get(key)
        if waiting is None:
            place.reserve(key, int(model.weights_nbytes * OLD_OVERHEAD))
            try:
                threading.Thread(target=self._start, args=(model, place.lasting, again), daemon=True).start()
            except RuntimeError:
                place.release(key)
                raise Unavailable("The model cannot be loaded at present: no thread can be started.") from None
            waiting = self._loading[key] = []
        waiting.append(ready)

    def _start(self, model: Model, place: Place, again: bool) -> None:
        """On a thread of its own."""
        begun, serving, problem = time.monotonic(), None, None
        try:
            serving = _started(model, place)
        except AtelierError as error:
            problem = error
        except Exception:
            log.exception("a model cannot be loaded", model_id=model.model_id)
            problem = InternalError()
        load_s = None if again else time.monotonic() - begun
        place.call_soon(lambda: self._arrived(key_of(model), serving, problem, load_s, place))

    def _arrived(self, key: str, serving: Serving | None, problem: Problem, load_s: float | None, place: Place) -> None:
        place.release(key)
        if serving is not None:
            try:
                place.adopt(key, serving, load_s)
            except (AtelierError, NoRoomNow) as error:
                problem = error
                serving.runner.close()
            else:
                serving.attach()
        for ready in self._loading.pop(key):
            ready(problem)

    def _look(self, model_id: str | None, current: _Current, place: Place) -> None:
        """Have its files changed?"""
        current.look_at = time.monotonic() + LOOK_S
        if current.reloading is None and _seen(model_id, current.model, place.models) != current.seen:
            self.reload(model_id, place)

    def in_use(self, model_id: str | None = None) -> dict[str | None, str]:
        """The names for which a model answers, or did when it was last asked -> that model. With a `model_id`: of this
        name, or of this model."""
        answering = {name: current.model.model_id for name, current in self._current.items()}
        return {name: found for name, found in answering.items() if model_id in (None, name, found)}

    def reload(self, model_id: str | None, place: Place, ended: Ended | None = None) -> bool:
        """Load the model of this name anew beside the one in use, if its files are others now, and let it take over.
        `ended` is told, on the device thread, how that went. False: nothing of this name is in use."""
        current = self._current.get(model_id)
        if current is None or current.key not in place.keys_of(current.model.model_id):
            return False
        waiting = [] if ended is None else [ended]
        if current.reloading is not None:
            current.late += waiting
        else:
            self._look_again(model_id, current, waiting, place.lasting)
        return True

    def _look_again(self, model_id: str | None, current: _Current, waiting: list[Ended], place: Place) -> None:
        current.reloading = waiting
        threading.Thread(target=self._find_again, args=(model_id, current, place), daemon=True).start()

    def _find_again(self, model_id: str | None, current: _Current, place: Place) -> None:
        """On a thread of its own: find what is there now."""
        model, seen, problem = current.model, current.seen, None
        try:
            seen = _seen(model_id, current.model, place.models)
            model = place.models.onnx(model_id)
        except AtelierError as error:
            problem = error
        except Exception:
            log.exception("a model cannot be reloaded", model_id=model_id)
            problem = InternalError()
        place.call_soon(lambda: self._found(model_id, current, model, seen, problem, place))

    def _found(
        self, model_id: str | None, current: _Current, model: Model, seen: Seen, problem: Problem, place: Place
    ) -> None:
        current.seen = seen
        ready = partial(self._take_over, model_id, current, model, place)
        if problem is not None or key_of(model) in place.keys_of(model.model_id):
            ready(problem)
            return
        try:
            self._load(model, place, ready, again=True)
        except (AtelierError, NoRoomNow) as error:
            ready(error)

    def _take_over(self, model_id: str | None, current: _Current, model: Model, place: Place, problem: Problem) -> None:
        waiting, current.reloading = current.reloading or [], None
        old, new = current.key, key_of(model)
        changed = problem is None and new != old
        if changed and self._current.get(model_id) is current:
            if model.model_id == current.model.model_id and place.is_kept(old):
                place.keep(new)
                place.keep(old, False)
            current.model = model
            if not place.is_kept(old) and all(other.key != old for other in self._current.values()):
                place.retire(old)
            log.info("reloaded", model_id=model.model_id, content_hash=model.content_hash[:12])
        if problem is not None:
            reason = problem.message if isinstance(problem, AtelierError) else "there is no room for both"
            log.error("the old model stays: the new one is not usable", model_id=model_id, problem=reason)
        if isinstance(problem, NoRoomNow):
            current.seen, current.look_at = (), time.monotonic() + AGAIN_S
        for ended in waiting:
            ended(current.model.model_id, changed, problem)
        if current.late:
            late: list[Ended] = [partial(_told_once, ended, changed) for ended in current.late]
            current.late = []
            self._look_again(model_id, current, late, place)


def _told_once(ended: Ended, before: bool, model_id: str, changed: bool, problem: Problem) -> None:
    """To who came between two looks: whether either of them found other files."""
    ended(model_id, before or changed, problem)


def key_of(model: Model) -> str:
    """What a loaded model is called in the device's memory: changed files make another model."""
    return f"{model.model_id} {model.content_hash}"


def _started(model: Model, place: Place) -> Serving:
    """Loaded in a process of its own, and tried; off the device thread, so nothing of it is watched yet. Raises what
    `Runner.start` raises, and ModelInvalid for its manifest."""
    serving = Serving(model, place, lambda: Runner.start(spec_of(model, place)))
    try:
        warm_up(serving)
    except BaseException:
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

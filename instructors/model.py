"""`model.load`, `model.unload`, `model.components` and `model.reload`: models in this worker's memory."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import structlog

from instructors.memory import NoRoomNow, is_out_of_memory
from instructors.models import ONNX, Model
from instructors.registry import Registry
from instructors.task import Context, Lane, Place, Result, SharedTask
from protocol.errors import AtelierError, InternalError, OutOfMemory, Unavailable
from protocol.schemas import ACTIONS
from protocol.schemas.model_worker import ModelComponents, ModelLoad, ModelReload, ModelUnload

log = structlog.get_logger("instructors.model")


class Waiting:
    """The one unit of a task: away while something is done elsewhere."""

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.rows = 1
        self.away = self.done = False
        self.error: BaseException | None = None

    def step(self) -> None:
        self.done = not self.away

    def go_on(self, function: Callable[[], None]) -> None:
        """It is back, unless the function sends it away again; what that raises ends the task."""
        self.away = False
        if self.done:
            return
        try:
            function()
        except Exception as error:
            self.error = error

    def close(self) -> None:
        self.done = True


class Load(SharedTask):
    """Those that predict are loaded on a thread of their own; pipelines in one quantum, as by any request."""

    def __init__(self, data: ModelLoad, context: Context) -> None:
        self._data, self._context = data, context
        self._begun = time.monotonic()
        self._unit = Waiting()
        self.units = [self._unit]
        self._was_loaded = True
        self._answer: dict[str, Any] = {}
        model = context.models.find(data.model_id)
        check_libraries(model)
        if model.family == ONNX:
            self._ask()
        else:
            self._load_pipeline(model)

    def _ask(self) -> None:
        from instructors.pipelines.onnx.loading import key_of

        serving = self._context.loader.serving(self._data.model_id, self._context, self._arrived)
        if serving is None:
            self._unit.away, self._was_loaded = True, False
        else:
            self._loaded(key_of(serving.model), serving.model, serving.nbytes)

    def _arrived(self, problem: Exception | None) -> None:
        def go_on() -> None:
            if problem is not None:
                raise problem
            self._ask()

        self._context.waited(time.monotonic() - self._begun)
        self._unit.go_on(go_on)

    def _load_pipeline(self, model: Model) -> None:
        from instructors.pipelines import loading

        before = self._context.keys_of(model.model_id)
        loaded = loading.resident(model.model_id, self._context)
        key = loading.key_of(loaded.model, loaded.settings)
        self._was_loaded = key in before
        self._loaded(key, loaded.model, loaded.nbytes)

    def _loaded(self, key: str, model: Model, nbytes: int) -> None:
        if self._data.keep:
            self._context.keep(key)
        self._answer = {
            "model_id": model.model_id,
            "content_hash": model.content_hash,
            "nbytes": nbytes,
            "load_ms": 0 if self._was_loaded else round((time.monotonic() - self._begun) * 1000),
            "device": self._context.device,
            "was_loaded": self._was_loaded,
            "kept": self._context.is_kept(key),
        }

    def result(self) -> Result:
        return Result(self._answer)


class Unload(SharedTask):
    def __init__(self, data: ModelUnload, context: Context) -> None:
        self.units = [Waiting()]
        model_id = data.model_id
        if not context.keys_of(model_id):
            model_id = context.models.find(model_id).model_id
        was_loaded = bool(context.keys_of(model_id))
        let_go(model_id, context)
        in_use = bool(context.keys_of(model_id))
        self._answer = {"model_id": model_id, "was_loaded": was_loaded, "in_use": in_use}

    def result(self) -> Result:
        return Result(self._answer)


def let_go(model_id: str, place: Place) -> None:
    """Unload a model, also one that was kept, as soon as no task uses it."""
    for key in place.keys_of(model_id):
        place.keep(key, False)
        place.retire(key)


class Components(SharedTask):
    def __init__(self, data: ModelComponents, context: Context) -> None:
        from instructors import composition

        self.units = [Waiting()]
        model = context.models.find(data.model_id)
        check_libraries(model)
        self._answer = composition.told(model, context)

    def result(self) -> Result:
        return Result(self._answer)


class Reloading(Waiting):
    """A look at the files of loaded models: those that predict all at a time, pipelines one a step."""

    def __init__(self, place: Place, model_id: str | None) -> None:
        """Raises what `ModelFolder.find` raises for a model that is not loaded."""
        super().__init__()
        self._place = place
        self.reloaded: set[str] = set()
        self.unchanged: set[str] = set()
        self.failed: dict[str, AtelierError] = {}
        predicting = place.loader.in_use(model_id) if find_spec("onnxruntime") else {}
        self._open = sum(place.loader.reload(name, place, self._ended) for name in predicting)
        self._pipelines = self._loaded_pipelines(model_id, set(predicting.values()))

    def _loaded_pipelines(self, model_id: str | None, predicting: set[str]) -> list[str]:
        if model_id is None:
            return [name for name in self._place.loaded if "/" not in name and name not in predicting]
        if self._open:
            return []
        if not self._place.keys_of(model_id):
            model_id = self._place.models.find(model_id).model_id
        if self._place.keys_of(model_id):
            return [model_id]
        self.unchanged.add(model_id)  # it is not loaded; its files are read when it is
        return []

    def step(self) -> None:
        if self._pipelines:
            self._reload_pipeline(self._pipelines.pop())
        self.away = not self._pipelines and self._open > 0
        self.done = not self._pipelines and not self.away

    def _ended(self, model_id: str, changed: bool, problem: AtelierError | NoRoomNow | None) -> None:
        self._open -= 1
        self.away = self._open > 0
        self._note(model_id, changed, problem)

    def _reload_pipeline(self, model_id: str) -> None:
        from instructors.pipelines import loading

        changed, problem = False, None
        try:
            changed = loading.reload(model_id, self._place)
        except Exception as error:
            problem = error
        self._note(model_id, changed, problem)

    def _note(self, model_id: str, changed: bool, problem: Exception | None) -> None:
        if problem is not None:
            self.failed[model_id] = _as_error(problem, model_id)
        else:
            (self.reloaded if changed else self.unchanged).add(model_id)

    def to_wire(self) -> dict[str, Any]:
        """The result of `model.reload`."""
        return {
            "reloaded": sorted(self.reloaded - self.failed.keys()),
            "unchanged": sorted(self.unchanged - self.reloaded - self.failed.keys()),
            "failed": [{"model_id": name, "error": error.to_wire()} for name, error in sorted(self.failed.items())],
        }


def _as_error(problem: Exception, model_id: str) -> AtelierError:
    if isinstance(problem, AtelierError):
        return problem
    if isinstance(problem, NoRoomNow) or is_out_of_memory(problem):
        return OutOfMemory("There is no room for it beside what is in use.")
    log.error("a model cannot be reloaded", model_id=model_id, exc_info=problem)
    return InternalError()


class Reload(SharedTask):
    def __init__(self, data: ModelReload, context: Context) -> None:
        self._reloading = Reloading(context, data.model_id)
        self.units = [self._reloading]

    def result(self) -> Result:
        return Result(self._reloading.to_wire())


def reload_all(place: Place) -> None:
    """Take up what has changed of all loaded models; those that predict go on by themselves. What fails is logged."""
    reloading = Reloading(place, None)
    while not (reloading.done or reloading.away):
        reloading.step()
    for name, error in reloading.failed.items():
        log.error("the old model stays: the new one is not usable", model_id=name, problem=error.message)


def check_libraries(model: Model) -> None:
    """Raise Unavailable where what the model needs to be loaded is not installed."""
    needed = "onnxruntime" if model.family == ONNX else "diffusers"
    if not find_spec(needed):
        raise Unavailable(f"This worker has no {needed}, which this model needs.")


def register(registry: Registry) -> None:
    registry.add(ACTIONS["model.load"], Load, shares=True)
    registry.add(ACTIONS["model.unload"], Unload, shares=True)
    registry.add(ACTIONS["model.components"], Components, shares=True)
    registry.add(ACTIONS["model.reload"], Reload, shares=True)

"""`lora.*`, and the LoRAs of a request for pictures: found, held against the model, loaded beside it."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from instructors import lora_files
from instructors.registry import Registry
from instructors.task import Context, Result, Task
from protocol.errors import AtelierError
from protocol.schemas import ACTIONS
from protocol.schemas.lora import LoraLoad, LoraUnload, LoraUse
from protocol.schemas.system import NoData

if TYPE_CHECKING:
    from instructors.pipelines.diffusion import LoadedModel
    from instructors.pipelines.lora import Adapter, Mix

HEADERS_A_STEP = 16

_adapters: "WeakValueDictionary[str, Adapter]" = WeakValueDictionary()  # those in memory, whoever holds them


class List(Task):
    """All LoRAs of the model folder, a few headers a step."""

    def __init__(self, data: NoData, context: Context) -> None:
        self._folder = lora_files.folder(context.models.root)
        self._names = self._folder.names()
        self._loras: list[dict[str, Any]] = []

    def step(self) -> Result | None:
        done = len(self._loras)
        for name in self._names[done : done + HEADERS_A_STEP]:
            self._loras.append({**self._folder.entry(name), "loaded": is_loaded(name)})
        return Result({"loras": self._loras}) if len(self._loras) == len(self._names) else None


class Load(Task):
    """One step: the model, if it is not loaded yet, and the LoRA."""

    def __init__(self, data: LoraLoad, context: Context) -> None:
        self._data = data
        self._context = context

    def step(self) -> Result | None:
        from instructors.pipelines import loading

        loaded = loading.resident(self._data.model_id, self._context)
        load(self._data.lora_id, loaded, self._context)
        entry = lora_files.folder(self._context.models.root).entry(self._data.lora_id)
        return Result({**entry, "loaded": True})


class Unload(Task):
    """From the device's memory, for whichever models it was loaded; what a job uses stays until that has ended."""

    def __init__(self, data: LoraUnload, context: Context) -> None:
        self._data = data
        self._context = context

    def step(self) -> Result | None:
        name = lora_files.resident_name(self._data.lora_id)
        for key in [key for key, adapter in _adapters.items() if adapter.name == name]:
            self._context.forget(key)
        entry = lora_files.folder(self._context.models.root).entry(self._data.lora_id)
        return Result({**entry, "loaded": is_loaded(self._data.lora_id)})


def mix(uses: Sequence[LoraUse], loaded: "LoadedModel", context: Context) -> "Mix":
    """The adapters that a request names, loaded, with their scales. Raises as `load` does."""
    return tuple((load(use.lora_id, loaded, context), use.scale) for use in uses)


def load(lora_id: str, loaded: "LoadedModel", context: Context) -> "Adapter":
    """The LoRA, ready to be mixed into this model; it stays in the device's memory until the job ends, at least.

    Raises ModelNotFound, Forbidden, ModelInvalid (it does not fit the model, among others), InvalidRequest (the model's
    family takes none) and OutOfMemory, with the `lora_id` in the details.
    """
    from instructors.pipelines.lora import LoraBase

    try:
        loaded.check_additions("LoRAs")
        file = lora_files.folder(context.models.root).find(lora_id)
        base = LoraBase.of(loaded.pipeline("text2img"), context.device)
        key = f"lora {file.content_hash} {loaded.model.content_hash}"  # a file of another name is the same LoRA
        adapter = context.resident(key, base.nbytes(file), lambda: base.load(file))
    except AtelierError as error:
        error.details["lora_id"] = lora_id
        raise
    _adapters[key] = adapter
    return adapter


def is_loaded(lora_id: str) -> bool:
    """Whether a LoRA of this name is in the device's memory, for whichever model."""
    return any(adapter.name == lora_files.resident_name(lora_id) for adapter in _adapters.values())


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that compute are not installed."""
    if find_spec("torch") and find_spec("diffusers"):
        registry.add(ACTIONS["lora.list"], List)
        registry.add(ACTIONS["lora.load"], Load)
        registry.add(ACTIONS["lora.unload"], Unload)

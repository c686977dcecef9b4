"""From a checked model folder to a pipeline on the device, whose components other models may share."""

from dataclasses import dataclass
from typing import Any

import structlog
import torch
from diffusers import AutoPipelineForText2Image

from instructors.memory import is_out_of_memory
from instructors.model_settings import ModelSettings
from instructors.models import Model
from instructors.pipelines import onnx_pipeline, single_file
from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.sharing import forget_results
from instructors.shelf import ComponentFiles
from instructors.task import Place
from protocol.errors import AtelierError, ModelInvalid
from protocol.limits import NAME_LENGTH_MAX

LAID_OUT = ("unet", "vae")  # components of convolutions, where the memory layout matters

log = structlog.get_logger("instructors.loading")


@dataclass(slots=True)
class Part:
    """A component in memory; see `instructors.task.Resident`."""

    module: torch.nn.Module
    nbytes: int

    def move(self, device: str) -> None:
        self.module.to(device)
        forget_results(self.module)


def resident(model_id: str | None, place: Place) -> LoadedModel:
    """The model of this name, loaded on the place's device. Raises what `ModelFolder.pipeline` and `load` raise."""
    model = place.models.pipeline(model_id)
    settings = place.models.settings(model.model_id)
    key = key_of(model, settings)
    if model.runs_onnx:
        found: LoadedModel = place.resident(
            key, model.weights_nbytes, lambda: onnx_pipeline.load(model, settings, place)
        )
    else:
        itemsize = dtype_for(place.device, model, settings).itemsize
        missing = [name for name, key in part_keys(model, settings, place.device).items() if place.part(key) is None]
        nbytes = itemsize * sum(model.elements.get(name, 0) for name in missing)
        found = place.resident(key, nbytes, lambda: load(model, settings, place))
    _replace_others(key, model.model_id, place)
    return found


def _replace_others(key: str, model_id: str, place: Place) -> None:
    """What was loaded of this name from other files leaves when the jobs that use it have ended."""
    for other in place.keys_of(model_id):
        if other != key:
            if place.is_kept(other):
                place.keep(key)
                place.keep(other, False)
            place.retire(other)


def reload(model_id: str, place: Place) -> bool:
    """Load a model anew if its files, or how it is to be loaded, have changed; whether they have. Raises as `resident`
    does; then the old one stays for the jobs that use it."""
    before = place.keys_of(model_id)
    loaded = resident(model_id, place)
    return key_of(loaded.model, loaded.settings) not in before


def key_of(model: Model, settings: ModelSettings) -> str:
    """What a loaded model is called in the device's memory: changed files make another model."""
    return f"{model.model_id} {model.content_hash} {_form(settings)}"


def _form(settings: ModelSettings) -> ModelSettings:
    """What of the settings matters for how it is loaded."""
    return settings.model_copy(update={"keep": False})


def dtype_for(device: str, model: Model, settings: ModelSettings) -> torch.dtype:
    """`Model.dtype`, as torch has it."""
    return getattr(torch, model.dtype(device, settings))


def load(model: Model, settings: ModelSettings, place: Place) -> LoadedModel:
    """Load a model, but for the components that another one has on the device. Raises ModelInvalid; running out of
    memory passes through."""
    keys = part_keys(model, settings, place.device)
    shared = {name: part.module for name, key in keys.items() if (part := place.part(key)) is not None}
    try:
        pipeline = _pipeline(model, dtype_for(place.device, model, settings), shared)
        _apply(settings, pipeline, place.device, [name for name in keys if name not in shared])
        parts = {}
        for name, key in keys.items():
            module = pipeline.components.get(name)
            if isinstance(module, torch.nn.Module):
                parts[key] = place.part(key) or Part(module, _nbytes(module))
        return LoadedModel(model, settings, pipeline, parts, place.padding)
    except AtelierError:
        raise
    except Exception as error:  # the libraries raise of every kind on files that do not fit together
        if is_out_of_memory(error):
            raise
        log.warning("a model cannot be loaded", model_id=model.model_id, error=repr(error))
        raise ModelInvalid("The model's files do not make a text-to-image pipeline.") from None


@dataclass(slots=True)
class LoadedComponent:
    """A component that stands beside the models. `name`, `nbytes` and `parts` are for the worker's residency."""

    name: str
    content_hash: str
    module: Any
    parts: dict[str, Part]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def class_name(self) -> str:
        return type(self.module).__name__


def component(noun: str, kind: Any, files: ComponentFiles, dtype: torch.dtype, place: Place) -> LoadedComponent:
    """A component of a shelf on the place's device, as the library's class `kind`; it stays there until the task ends,
    at least. Raises ModelInvalid and OutOfMemory."""
    content_hash, _, _ = place.models.inspect(files.path)
    key = f"{noun} {content_hash} {dtype}"  # a folder of another name may hold the same

    def load() -> LoadedComponent:
        module = _load_component(noun, kind, files, dtype).to(place.device).eval().requires_grad_(False)
        name = f"{noun.lower()}/{files.name}"[:NAME_LENGTH_MAX]  # like no model's name
        return LoadedComponent(name, content_hash, module, {key: Part(module, _nbytes(module))})

    return place.resident(key, files.elements * dtype.itemsize, load)


def _load_component(noun: str, kind: Any, files: ComponentFiles, dtype: torch.dtype) -> Any:
    options = {"local_files_only": True, "use_safetensors": True, "dtype": dtype, "variant": files.variant}
    try:
        module, report = kind.from_pretrained(files.path, output_loading_info=True, **options)
    except Exception as error:  # the library raises of every kind on files that do not fit together
        if is_out_of_memory(error):
            raise
        log.warning("not usable", kind=noun, name=files.name, error=repr(error))
        raise ModelInvalid(f"This {noun}'s files do not make a {noun}.") from None
    if wrong := [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]:
        raise ModelInvalid(f"The weights and the config do not fit together: {str(wrong[0])[:100]!r}.")
    return module


def part_keys(model: Model, settings: ModelSettings, device: str) -> dict[str, str]:
    """Component -> what it is shared by: its content, how it is loaded, and what it is there for, by which LoRAs find
    it. Offloaded models share nothing, for their components are bound to one pipeline."""
    own = f"{model.model_id} " if settings.offload != "none" else ""
    form, dtype = _form(settings), dtype_for(device, model, settings)
    return {
        name: f"{own}{name} {library[1]} {model.hashes[name]} {dtype} {form}"
        for name, library in model.components.items()
        if library is not None and name in model.hashes and model.elements.get(name)
    }


def _pipeline(model: Model, dtype: torch.dtype, shared: dict[str, Any]) -> Any:
    pipeline = single_file.pipeline(model.single, dtype, shared) if model.single else _from_folder(model, dtype, shared)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _from_folder(model: Model, dtype: torch.dtype, shared: dict[str, Any]) -> Any:
    options: dict[str, Any] = {name: None for name, library in model.components.items() if library is None}
    if "safety_checker" in model.components:
        options.update(safety_checker=None, requires_safety_checker=False)
    if _only_fp16(model):
        options["variant"] = "fp16"
    return AutoPipelineForText2Image.from_pretrained(
        model.path, local_files_only=True, use_safetensors=True, dtype=dtype, **options, **shared
    )


def _apply(settings: ModelSettings, pipeline: Any, device: str, fresh: list[str]) -> None:
    """Put the pipeline on the device, as the settings say; `fresh`: its components that nobody shares yet."""
    modules = {name: pipeline.components[name] for name in fresh}
    for name in LAID_OUT:
        if settings.channels_last and name in modules:
            modules[name].to(memory_format=torch.channels_last)
    if "vae" in modules:
        if settings.vae_tiling:
            modules["vae"].enable_tiling()
        if settings.vae_slicing:
            modules["vae"].enable_slicing()
    if settings.offload != "none" and device == "cpu":
        log.warning("offload has no effect on a CPU")
    elif settings.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif settings.offload == "group":
        pipeline.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level")
    if settings.offload == "none" or device == "cpu":
        pipeline.to(device)
    for name in ("unet", "transformer"):
        if settings.compile and name in modules:
            modules[name].compile_repeated_blocks()


def _only_fp16(model: Model) -> bool:
    files = [file.name for file in model.path.rglob("*.safetensors")]
    return bool(files) and all(".fp16." in name for name in files)


def _nbytes(module: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}.values())

"""From a checked folder of ONNX graphs to a stock pipeline that runs on them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import isclass
from pathlib import Path
from typing import Any

import diffusers
import structlog
import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from instructors.memory import is_out_of_memory
from instructors.model_settings import ModelSettings
from instructors.models import INDEX, Model
from instructors.onnx_layout import GRAPH_FILE, VAE_DECODER, VAE_ENCODER
from instructors.pipelines import onnx_components
from instructors.pipelines.diffusion import LoadedModel
from instructors.pipelines.onnx_components import GraphForward
from instructors.task import Place
from protocol.errors import AtelierError, ModelInvalid

PIPELINES = {"stable_diffusion": StableDiffusionPipeline, "stable_diffusion_xl": StableDiffusionXLPipeline}
ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
NONE = ("safety_checker", "feature_extractor", "image_encoder")

log = structlog.get_logger("instructors.onnx")


@dataclass(slots=True)
class GraphPart:
    """A graph in its process; see `instructors.task.Resident`. It moves nowhere: a process that ends frees all."""

    graph: GraphForward

    @property
    def nbytes(self) -> int:
        return self.graph.nbytes


class OnnxModel(LoadedModel):
    """A pipeline whose components are graphs. It shares them with no other model, and ends their processes."""

    def close(self) -> None:
        """End all of its processes."""
        for part in self.parts.values():
            part.graph.close()


def load(model: Model, settings: ModelSettings, place: Place) -> OnnxModel:
    """Start the graphs' processes, and build the pipeline around them. Raises ModelInvalid, and what starting them
    raises."""
    if model.family not in PIPELINES:
        raise ModelInvalid(f"ONNX graphs of the family {model.family} are not run; {' and '.join(PIPELINES)} are.")
    graphs = _start(model, place)
    try:
        pipeline = _pipeline(model, graphs)
        keys = part_keys(model)
        parts = {keys[name]: GraphPart(graph) for name, graph in graphs.items()}
        return OnnxModel(model, settings, pipeline, parts, place.padding)
    except BaseException as error:
        for graph in graphs.values():
            graph.close()
        if isinstance(error, AtelierError) or not isinstance(error, Exception) or is_out_of_memory(error):
            raise
        log.warning("a model cannot be loaded", model_id=model.model_id, error=repr(error))
        raise ModelInvalid("The model's files do not make a text-to-image pipeline.") from None


def part_keys(model: Model) -> dict[str, str]:
    """Component -> its key in the device's memory, of those that are graphs. It is shared with no other model."""
    return {name: f"{model.model_id} {model.content_hash} {name}" for name in _names(model)}


def _names(model: Model) -> list[str]:
    names = sorted(file.parent.name for file in model.path.glob(f"*/{GRAPH_FILE}"))
    return [name for name in names if name in ("unet", *ENCODERS, VAE_ENCODER, VAE_DECODER)]


def _start(model: Model, place: Place) -> dict[str, GraphForward]:
    """Component -> its graph. They start side by side; where one fails, all end."""
    names, cache = _names(model), None if place.cache_dir is None else place.cache_dir / "onnx"
    with ThreadPoolExecutor(len(names)) as pool:
        begun = {name: pool.submit(GraphForward, model.path / name / GRAPH_FILE, place.device, cache) for name in names}
    failed = [future.exception() for future in begun.values() if future.exception()]
    graphs = {name: future.result() for name, future in begun.items() if not future.exception()}
    if failed:
        for graph in graphs.values():
            graph.close()
        raise failed[0]  # type: ignore[misc]
    return graphs


def _pipeline(model: Model, graphs: dict[str, GraphForward]) -> Any:
    index = json.loads((model.path / INDEX).read_text(encoding="utf-8"))
    path = model.path
    missing = [name for name in ("unet", VAE_ENCODER, VAE_DECODER, "text_encoder") if name not in graphs]
    if missing:
        raise ModelInvalid(f"It lacks a graph: {missing[0]}/{GRAPH_FILE}.")
    parts: dict[str, Any] = {
        name: onnx_components.text_encoder(path / name, graphs[name]) for name in ENCODERS if name in graphs
    }
    parts |= {
        name: CLIPTokenizer.from_pretrained(path / name, local_files_only=True)
        for name in TOKENIZERS
        if (path / name).is_dir()
    }
    parts["unet"] = onnx_components.unet(path / "unet", graphs["unet"])
    parts["vae"] = onnx_components.vae(path / VAE_DECODER, graphs[VAE_ENCODER], graphs[VAE_DECODER])
    parts["scheduler"] = _scheduler(path / "scheduler", str(index["scheduler"][1]))
    if model.family == "stable_diffusion":
        parts |= dict.fromkeys(NONE) | {"requires_safety_checker": False}
    elif "force_zeros_for_empty_prompt" in index:
        parts["force_zeros_for_empty_prompt"] = bool(index["force_zeros_for_empty_prompt"])
    with torch.no_grad():
        pipeline = PIPELINES[model.family](**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _scheduler(folder: Path, name: str) -> Any:
    kind: Any = getattr(diffusers, name, None)
    known = isclass(kind) and issubclass(kind, SchedulerMixin)
    if not known:
        raise ModelInvalid(f"Its scheduler {name[:60]!r} is none of diffusers'.")
    return kind.from_pretrained(folder, local_files_only=True)

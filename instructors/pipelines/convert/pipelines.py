"""A diffusers pipeline as a folder of ONNX graphs, one component in memory at a time."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from instructors.models import INDEX
from instructors.onnx_layout import COMPONENT_CLASS, GRAPH_FILE, VAE_DECODER, VAE_ENCODER
from instructors.pipelines.convert import components
from instructors.pipelines.convert.graphs import Graph, made
from instructors.pipelines.convert.order import Order, Report
from protocol.errors import ModelInvalid

COPIED = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
PRECISE = ("vae",)  # pictures show what is lost here; and it has hardly a matrix product

Make = Callable[[Any], Graph]
PARTS: dict[str, dict[str, Make]] = {  # component -> folder -> its graph
    "text_encoder": {"text_encoder": components.text_encoder},
    "text_encoder_2": {"text_encoder_2": components.text_encoder},
    "unet": {"unet": components.unet},
    "vae": {VAE_ENCODER: components.vae_encoder, VAE_DECODER: components.vae_decoder},
}


def convert(order: Order, report: Report) -> dict[str, Any]:
    """Write the pipeline into the order's folder. Gives each graph's difference, as `agreed` tells it.

    Raises ModelInvalid where one is too large, or the files make no pipeline.
    """
    index = json.loads((order.source.path / INDEX).read_text(encoding="utf-8"))
    there = [name for name in PARTS if index.get(name, [None])[0] is not None]
    graphs = [(name, folder) for name in there for folder in PARTS[name]]
    differences = {}
    for number, (name, folder) in enumerate(graphs):
        report(number / len(graphs), folder)
        differences[folder] = _part(order, name, folder, index[name])
        gc.collect()
    for name in COPIED:
        if (order.source.path / name).is_dir():
            shutil.copytree(order.source.path / name, order.folder / name)
    _write_index(index, order.folder)
    return differences


def _part(order: Order, name: str, folder: str, kind: list[str]) -> dict[str, float]:
    module = load_component(order.source.path / name, kind)
    precision = order.source.precision
    if name in PRECISE and (precision == "int8" or module.config.get("force_upcast", False)):
        precision = "float32"  # such a VAE says that it overflows in halves
    difference = made(PARTS[name][folder](module), order.folder / folder / GRAPH_FILE, precision, folder)
    shutil.copy(order.source.path / name / "config.json", order.folder / folder)
    return difference


def load_component(folder: Path, kind: list[str]) -> Any:
    """In float32, as the class that a pipeline's index names. Raises ModelInvalid where its files do not fit."""
    names = [file.name for file in folder.glob("*.safetensors")]
    variant = "fp16" if names and all(".fp16." in name for name in names) else None
    module, report = getattr(LIBRARIES[kind[0]], kind[1]).from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        variant=variant,
        output_loading_info=True,
    )
    if wrong := list(_wrong(report)):
        raise ModelInvalid(f"The weights and the config do not fit together: {str(wrong[0])[:100]!r}.")
    return module.eval().requires_grad_(False)


def _wrong(report: dict[str, Any]) -> Iterator[str]:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        yield from (str(key) for key in report[kind] if "position_ids" not in str(key))  # older files hold these


def _write_index(index: dict[str, Any], target: Path) -> None:
    onnx = {file.parent.name: list(COMPONENT_CLASS) for file in sorted(target.glob(f"*/{GRAPH_FILE}"))}
    kept = {name: value for name, value in index.items() if name.startswith("_") or name in COPIED}
    kept["_class_name"] = f"Onnx{index['_class_name']}"
    flags = {name: value for name, value in index.items() if isinstance(value, bool) and not name.startswith("_")}
    whole = {**kept, **flags, **onnx, "safety_checker": [None, None]}
    (target / INDEX).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")

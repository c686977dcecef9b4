"""A checkpoint in one file as a folder in diffusers layout."""

import json
from pathlib import Path
from typing import Any

import torch

from instructors.models import ModelFolder
from instructors.pipelines import single_file
from instructors.pipelines.convert.graphs import agreed, truth
from instructors.pipelines.convert.order import Order, Report
from instructors.pipelines.convert.pipelines import PARTS, load_component
from protocol.errors import ModelInvalid

PATHS = ("_name_or_path",)  # keys of configs that tell of this machine


def convert(order: Order, report: Report) -> dict[str, Any]:
    """Write the pipeline into the order's folder, and read it back. Gives each graph's difference.

    Raises ModelInvalid where one is too large, or the file makes no pipeline.
    """
    file = ModelFolder(order.target.parent.parent).pipeline(order.source.name).single
    if file is None:
        raise ModelInvalid("It is no single file any more.")
    made = single_file.pipeline(file, torch.float32, {})
    graphs = [(name, folder) for name in PARTS if made.components.get(name) is not None for folder in PARTS[name]]
    wanted = {}
    for number, (name, folder) in enumerate(graphs):
        report(number / len(graphs) / 2, folder)
        wanted[folder] = truth(PARTS[name][folder](made.components[name].eval()))
    made.to(getattr(torch, order.source.precision)).save_pretrained(order.folder, safe_serialization=True)
    for config in order.folder.rglob("*.json"):
        _forget_paths(config)
    index = json.loads((order.folder / "model_index.json").read_text(encoding="utf-8"))
    differences = {}
    for number, (name, folder) in enumerate(graphs):
        report((1 + number / len(graphs)) / 2, folder)
        found = truth(PARTS[name][folder](load_component(order.folder / name, index[name])))
        differences[folder] = agreed(found, wanted[folder], order.source.precision, folder)
    return differences


def _forget_paths(config: Path) -> None:
    told = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(told, dict) and any(key in told for key in PATHS):
        kept = {key: value for key, value in told.items() if key not in PATHS}
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

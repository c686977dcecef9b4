"""What a model is made of, and where its parts are on this worker."""

from typing import Any

from instructors.models import ITEMSIZES, NOT_LOADED, ONNX, Model
from instructors.onnx_layout import GRAPH_FILE
from instructors.pipelines.onnx import graph
from instructors.task import Place

ASIDE, FILES, HOST = "aside", "files", "cpu"  # where a part is that is not on the device


def told(model: Model, place: Place) -> dict[str, Any]:
    """The result of `model.components`. Raises ModelInvalid for an ONNX file that cannot be read."""
    return _predicting(model, place) if model.family == ONNX else _pipeline(model, place)


def _about(model: Model, key: str, place: Place, *, loaded: bool) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "content_hash": model.content_hash,
        "family": model.family,
        "device": place.device,
        "loaded": loaded,
        "kept": place.is_kept(key),
    }


def _predicting(model: Model, place: Place) -> dict[str, Any]:
    from instructors.pipelines.onnx.loading import key_of
    from instructors.pipelines.onnx.serving import Serving, has_batch_axis

    file = graph.inspect(model.path / model.manifest.onnx.file, model.path)
    key, batching = key_of(model), model.manifest.batching
    loaded = place.at_hand(key)
    facts = loaded.facts if isinstance(loaded, Serving) else None
    tensors = facts or file
    return {
        **_about(model, key, place, loaded=facts is not None),
        "nbytes": file.nbytes if loaded is None else loaded.nbytes,
        "graph": {
            "inputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors.inputs],
            "outputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors.outputs],
            "opset": file.opset,
            "elements": file.elements,
            "providers": None if facts is None else list(facts.providers),
            "fell_back": None if facts is None else facts.fell_back,
            "batched": batching.max_batch_size > 1 and has_batch_axis(tensors),
            "max_batch_size": batching.max_batch_size,
            "instances": batching.instances,
            "preprocess": [str(step.get("step")) for step in model.manifest.preprocess],
            "postprocess": [str(step.get("step")) for step in model.manifest.postprocess],
        },
    }


def _pipeline(model: Model, place: Place) -> dict[str, Any]:
    from instructors.pipelines import loading, onnx_pipeline

    settings = place.models.settings(model.model_id)
    key, dtype = loading.key_of(model, settings), model.dtype(place.device, settings)
    loaded = place.at_hand(key)
    keys = onnx_pipeline.part_keys(model) if model.runs_onnx else loading.part_keys(model, settings, place.device)
    components = []
    for name, kind in model.components.items():
        if kind is None or name in NOT_LOADED:
            continue
        about = {"name": name, "class_name": kind[1]}
        if name in keys:
            components.append({**about, **_part(model, name, keys[name], dtype, place)})
        else:
            components.append({**about, "elements": 0, "nbytes": 0, "where": FILES if loaded is None else HOST})
    return {
        **_about(model, key, place, loaded=loaded is not None),
        "nbytes": model.nbytes(place.device, settings) if loaded is None else loaded.nbytes,
        "components": components,
    }


def _part(model: Model, name: str, key: str, dtype: str, place: Place) -> dict[str, Any]:
    """Of a component with weights."""
    holders, part = place.holders(key), place.part(key)
    found = {
        "where": place.device if part is not None else ASIDE if holders else FILES,
        "shared_with": sorted(holders.keys() - {model.model_id}),
    }
    if model.runs_onnx:
        file = graph.inspect(model.path / name / GRAPH_FILE, model.path)
        nbytes, providers = (file.nbytes, None) if part is None else (part.nbytes, list(part.graph.providers))
        return {**found, "elements": file.elements, "nbytes": nbytes, "providers": providers}
    elements = model.elements[name]
    if part is None:
        return {**found, "elements": elements, "nbytes": elements * ITEMSIZES[dtype], "dtype": dtype}
    real = str(next(part.module.parameters()).dtype).removeprefix("torch.")
    return {**found, "elements": elements, "nbytes": part.nbytes, "dtype": real}

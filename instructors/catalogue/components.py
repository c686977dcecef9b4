"""The parts of a model in diffusers layout: whether all are there, have what their configs say, and fit together."""

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from instructors.catalogue.content import CONFIG
from instructors.catalogue.header import Header
from instructors.catalogue.report import Report
from instructors.catalogue.sniff import IDENTIFIER, class_of, is_too_deep, read_json
from instructors.models import INDEX, LIBRARIES, NOT_LOADED
from protocol.limits import MIB

CONFIGS = {  # how a component's name begins -> the files of which one must be there
    "tokenizer": ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer_config.json"),
    "scheduler": ("scheduler_config.json",),
    "feature_extractor": ("preprocessor_config.json",),
    "image_processor": ("preprocessor_config.json", "processor_config.json"),
}
OPTIONAL = (*NOT_LOADED, "feature_extractor", "image_encoder", "image_processor")
JSON_BYTES_MAX = 16 * MIB  # of a list of shards, of a vocabulary
NUMBER_MAX = 10_000_000  # in a config
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention in old VAEs
SHOWN = 5  # names in a message
REMEDY = "Get the component anew, from one source: its config and its weights belong together."

Configs = Mapping[str, Mapping[str, Any]]  # component -> its config.json


def check(path: Path, files: list[Path], headers: Mapping[Path, Header], report: Report) -> Iterator[None]:
    """Of a pipeline's folder, or of one component's."""
    if (path / INDEX).is_file():
        configs = _pipeline(path, files, headers, report)
        yield
        folders = {name: path / name for name in configs}
        with report.check("components") as facts:
            for code, message in _misfits(configs, _index(path).get("_class_name"), path):
                report.error(code, message, "Put back the component that belongs to this model.")
            facts["components"] = sorted(configs)
    else:
        folders = {"": path}
        configs = {"": _component(path, report)}
    yield
    yield from _weights(folders, configs, headers, report)


def _index(path: Path) -> dict[str, Any]:
    return read_json(path / INDEX) or {}


def _pipeline(path: Path, files: list[Path], headers: Mapping[Path, Header], report: Report) -> Configs:
    """Whether the index and all the configs are there."""
    found: dict[str, Mapping[str, Any]] = {}
    with report.check("config") as facts:
        index = _index(path)
        facts["class_name"] = class_of(index)
        if facts["class_name"] is None:
            report.error("index", f"{INDEX} does not name a pipeline of diffusers.", f"Restore {INDEX}.")
        for name, value in index.items():
            if name.startswith("_") or type(value) is not list:
                continue
            if len(value) != 2 or value[0] not in LIBRARIES or not IDENTIFIER.fullmatch(name):
                message = f"{INDEX} wants code of its own for {name[:60]!r}, and that is not run."
                report.error("foreign_code", message, "Use a model of diffusers' and transformers' own classes.")
            elif value[0] is not None and _is_there(path, name, files, headers, report):
                found[name] = read_json(path / name / CONFIG) or {}
    return found


def _is_there(path: Path, name: str, files: list[Path], headers: Mapping[Path, Header], report: Report) -> bool:
    """Whether a component is; what lacks is told."""
    own = {file.name for file in files if file.parent == path / name}
    if not own:
        tell = report.warning if name in OPTIONAL else report.error
        tell("component_missing", f"The component {name[:60]!r} is in {INDEX}, and its folder is not there.", REMEDY)
        return False
    kind = next((kind for kind in CONFIGS if name.startswith(kind)), None)
    wanted = CONFIGS[kind] if kind else (CONFIG,)
    if not own & set(wanted):
        report.error("config_missing", f"The component {name[:60]!r} has no {wanted[0]}.", REMEDY)
    elif kind is None and class_of(read_json(path / name / CONFIG) or {}) is None:
        report.error("config", f"The config of the component {name[:60]!r} names no class.", REMEDY)
    has_weights = any(file.parent == path / name for file in headers) or any(file.endswith(".onnx") for file in own)
    if kind is None and not has_weights:
        report.error("weights_missing", f"The component {name[:60]!r} has no safetensors.", REMEDY)
    return True


def _component(path: Path, report: Report) -> Mapping[str, Any]:
    with report.check("config") as facts:
        config = read_json(path / CONFIG) or {}
        facts["class_name"] = class_of(config)
        if facts["class_name"] is None:
            report.error("config", f"{CONFIG} names no class.", REMEDY)
    return config


def _weights(
    folders: Mapping[str, Path], configs: Configs, headers: Mapping[Path, Header], report: Report
) -> Iterator[None]:
    """Whether shards are complete, and whether the tensors are those that the configs ask for."""
    with report.check("weights") as facts:
        compared = []
        for name, folder in folders.items():
            yield
            own = {file.name: found for file, found in headers.items() if file.parent == folder}
            _check_shards(folder, own, name, report)
            shapes = {
                name: shape for _, found in sorted(own.items(), reverse=True) for name, shape in found.shapes.items()
            }
            if shapes and (wanted := expected(configs[name])) is not None:
                _compare(shapes, wanted, name or "model", report)
                compared.append(name or "model")
        facts["compared_with_config"] = compared


def _check_shards(folder: Path, own: Mapping[str, Header], name: str, report: Report) -> None:
    for file in sorted(folder.glob("*.safetensors.index.json")):
        weight_map = (read_json(file, JSON_BYTES_MAX) or {}).get("weight_map")
        if type(weight_map) is not dict:
            report.error("shards", f"{file.name[:100]!r} has no weight_map.", REMEDY)
            continue
        if missing := sorted({str(shard) for shard in weight_map.values()} - own.keys()):
            report.error("shards", f"Parts of its weights are not there: {_some(missing)}.", REMEDY)
            continue
        if absent := [key for key, shard in weight_map.items() if key not in own[shard].tensors]:
            report.error("shards", f"Tensors are not where {file.name[:100]!r} says: {_some(absent)}.", REMEDY)


def expected(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Tensor's name -> shape, as the class of diffusers makes them from this config; None where none does, or the
    libraries are not installed. No memory is taken for the tensors."""
    class_name = config.get("_class_name")
    if type(class_name) is not str or not _is_sane(config) or not (find_spec("torch") and find_spec("diffusers")):
        return None
    import diffusers
    import torch

    kind: Any = getattr(diffusers, class_name, None)
    is_model = inspect.isclass(kind) and issubclass(kind, diffusers.ModelMixin)
    if not is_model:
        return None
    try:
        with torch.device("meta"):
            module = kind.from_config(dict(config))
    except Exception:  # a config that no module can be made of: loading it will say the same
        return None
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _is_sane(config: Mapping[str, Any]) -> bool:
    """Whether making a module of it takes a moment only."""
    for value in config.values():
        numbers = value if isinstance(value, list) else [value]
        numbers = [number for entry in numbers for number in (entry if isinstance(entry, list) else [entry])]
        if any(isinstance(number, int | float) and abs(number) > NUMBER_MAX for number in numbers):
            return False
    return not is_too_deep(config)


def _compare(
    shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], name: str, report: Report
) -> None:
    have = {_new_name(key): shape for key, shape in shapes.items()}
    if missing := sorted(wanted.keys() - have.keys()):
        report.error("tensors_missing", f"{len(missing)} tensors of {name!r} are missing: {_some(missing)}.", REMEDY)
    if more := sorted(have.keys() - wanted.keys()):
        message = f"{len(more)} tensors of {name!r} are none of its config's: {_some(more)}."
        report.warning("tensors_unexpected", message, REMEDY)
    for key in sorted(wanted.keys() & have.keys()):
        if have[key] != wanted[key]:
            message = (
                f"The tensor {key[:100]!r} of {name!r} is {_told(have[key])}; its config asks for {_told(wanted[key])}."
            )
            report.error("tensor_shape_config", message, REMEDY)
            return  # the others have the same reason


def _new_name(key: str) -> str:
    match = re.fullmatch(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", key)
    return f"{match[1]}.{OLD_NAMES[match[2]]}.{match[3]}" if match else key


def _misfits(configs: Configs, class_name: Any, path: Path) -> Iterator[tuple[str, str]]:
    """(code, message) of components that do not fit together."""
    text = [configs.get(name, {}) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    vae = configs.get("vae", {})
    if "unet" in configs:
        yield from _unet_misfits(configs["unet"], text, vae, str(class_name))
    elif "transformer" in configs and str(class_name).startswith(("StableDiffusion3", "Flux")):
        yield from _transformer_misfits(configs["transformer"], text, vae, str(class_name).startswith("Flux"))
    for suffix in ("", "_2"):
        words, limit = _words(path / f"tokenizer{suffix}"), configs.get(f"text_encoder{suffix}", {}).get("vocab_size")
        if type(limit) is int and words > limit:
            yield "vocabulary", f"The tokenizer{suffix} knows {words} words and its text encoder {limit}."


def _words(tokenizer: Path) -> int:
    """How many a tokenizer knows, in either of the forms that transformers write; 0: it does not say."""
    found: Any = read_json(tokenizer / "vocab.json", JSON_BYTES_MAX)
    if found is None:
        model = (read_json(tokenizer / "tokenizer.json", JSON_BYTES_MAX) or {}).get("model")
        found = model.get("vocab") if isinstance(model, dict) else None
    return len(found) if isinstance(found, dict) else 0


def _unet_misfits(
    unet: Mapping[str, Any], text: list[Mapping[str, Any]], vae: Mapping[str, Any], class_name: str
) -> Iterator[tuple[str, str]]:
    if class_name.startswith(("StableDiffusion", "LatentConsistency")):
        width, widths = (
            unet.get("cross_attention_dim"),
            [config["hidden_size"] for config in text if "hidden_size" in config],
        )
        if type(width) is int and widths and all(type(own) is int for own in widths) and sum(widths) != width:
            yield "text_width", f"The UNet attends to texts of width {width}; the text encoders make {sum(widths)}."
    latents, channels = vae.get("latent_channels"), unet.get("in_channels")
    if (
        type(latents) is int
        and type(channels) is int
        and channels not in (latents, latents + 1, 2 * latents, 2 * latents + 1)
    ):
        yield "latent_channels", f"The UNet takes {channels} channels, and the VAE's latents have {latents}."


def _transformer_misfits(
    transformer: Mapping[str, Any], text: list[Mapping[str, Any]], vae: Mapping[str, Any], packed: bool
) -> Iterator[tuple[str, str]]:
    latents, channels = vae.get("latent_channels"), transformer.get("in_channels")
    patch = 4 if packed else 1  # Flux sees two by two latents as one
    if type(latents) is int and type(channels) is int and channels % (patch * latents):
        yield "latent_channels", f"The transformer takes {channels} channels; the VAE's latents give {patch * latents}."
    width, told = transformer.get("joint_attention_dim"), text[1 if packed else 2].get("d_model")
    if type(width) is int and type(told) is int and width != told:
        yield "text_width", f"The transformer attends to texts of width {width}; the text encoder makes {told}."


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:100]) for name in names[:SHOWN])
    return f"{shown}, …" if len(names) > SHOWN else shown


def _told(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"

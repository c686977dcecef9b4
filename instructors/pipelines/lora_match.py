"""Which layer of a model each tensor of a LoRA belongs to, found from names and shapes before a tensor is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import nn

from instructors.catalogue.judge import BASE_MODELS
from instructors.lora_files import COMPONENTS, LoraFile
from protocol.errors import ModelInvalid

PROBLEMS_SHOWN = 5
NUMBER_MAX = 1_000_000  # of an alpha or a rank in a file's settings

log = structlog.get_logger("instructors.lora")


@dataclass(frozen=True, slots=True)
class Target:
    """A layer that a LoRA changes, and the names in the file of what changes it."""

    component: str  # "unet", "text_encoder", "text_encoder_2"
    layer: str  # the module's name within the component
    down: str
    up: str
    alpha: str | None  # the tensor that holds alpha; None: it is `settled_alpha`
    settled_alpha: float
    divisor: float  # the rank, or its root where the LoRA is rank-stabilised


class _Name(str):
    """A tensor's name in the file, in the tensor's place while diffusers converts the names."""

    def item(self) -> float:
        """diffusers reads alphas as it goes; they are matched here, by their layer's name in the file."""
        return 1.0


def match(file: LoraFile, parts: Mapping[str, nn.Module]) -> list[Target]:
    """Every layer of the pipeline's `parts` (by component) that the LoRA changes.

    Raises ModelInvalid where any tensor has no such layer, or not its shape.
    """
    names = _converted(file, parts)
    problems = [f"the model has no {component}" for component in names if names[component] and component not in parts]
    targets = []
    for component, part in parts.items():
        layers = {name: module for name, module in part.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        for name, down in names.get(component, {}).items():
            if not name.endswith(".lora_A.weight"):
                continue
            layer = name.removesuffix(".lora_A.weight")
            up = names[component].get(f"{layer}.lora_B.weight")
            problem = _misfit(file, layers.get(layer), down, up)
            if problem is not None:
                problems.append(f"{component} {layer[:100]}: {problem}")
            elif up is not None:
                targets.append(_target(file, component, layer, down, up))
    used = {name for target in targets for name in (target.down, target.up, target.alpha)}
    if not problems and (file.shapes.keys() - used or not targets):
        problems = [f"unknown tensor {name[:100]}" for name in sorted(file.shapes.keys() - used)]
    if problems:
        raise _unfit(file, parts, problems)
    return targets


def _converted(file: LoraFile, parts: Mapping[str, nn.Module]) -> dict[str, dict[str, str]]:
    """Component -> {name in peft's layout: name in the file}, by diffusers' own rules for every layout."""
    index = {name: _Name(name) for name in file.shapes}
    try:
        converted, _ = StableDiffusionXLPipeline.lora_state_dict(index, unet_config=parts["unet"].config)
        found = {component: _under(component, converted) for component in COMPONENTS}
        found["unet"] = convert_unet_state_dict_to_peft(found["unet"])
        for component in COMPONENTS[1:]:
            if found[component]:
                names = convert_state_dict_to_peft(convert_state_dict_to_diffusers(found[component]))
                if not hasattr(parts.get(component), "text_model"):  # not every version of the encoder has this level
                    names = {name.removeprefix("text_model."): value for name, value in names.items()}
                found[component] = names
    except Exception as error:  # diffusers raises of every kind on names that it does not know
        log.info("names not converted", lora_id=file.lora_id, error=repr(error)[:500])
        raise _unfit(file, parts, ["its layers' names are of no known kind"]) from None
    return found


def _under(component: str, names: Mapping[str, str]) -> dict[str, str]:
    prefix = f"{component}."
    return {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}


def _misfit(file: LoraFile, module: nn.Linear | nn.Conv2d | None, down: str, up: str | None) -> str | None:
    """Why the two halves do not change this layer."""
    if module is None:
        return "there is no such layer"
    if up is None:
        return "half of it is missing"
    shapes = file.shapes[down], file.shapes[up]
    rank = shapes[0][0]
    wanted: tuple[tuple[int, ...], tuple[int, ...]]
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            return "layers of this kind are not changed"
        wanted = (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
    else:
        wanted = (rank, module.in_features), (module.out_features, rank)
    return None if shapes == wanted else f"its shapes are {shapes}, for this model {wanted}"


def _target(file: LoraFile, component: str, layer: str, down: str, up: str) -> Target:
    rank = file.shapes[down][0]
    alpha = f"{down.partition('.')[0]}.alpha"
    if alpha in file.shapes:
        if math.prod(file.shapes[alpha]) != 1:
            raise ModelInvalid(f"The alpha of this LoRA's layer {layer[:100]!r} is not one number.")
        return Target(component, layer, down, up, alpha, rank, rank)
    config = file.config.get(component)
    if config is None:
        return Target(component, layer, down, up, None, rank, rank)
    if _setting(config, "rank_pattern", "r", layer, rank) != rank:
        raise ModelInvalid(f"The rank of this LoRA's layer {layer[:100]!r} is not the one that its metadata tells.")
    divisor = math.sqrt(rank) if config.get("use_rslora") is True else rank
    return Target(
        component, layer, down, up, None, _setting(config, "alpha_pattern", "lora_alpha", layer, rank), divisor
    )


def _setting(config: Mapping[str, Any], pattern: str, name: str, layer: str, default: float) -> float:
    """A number of peft's settings for a layer. Its patterns may be regular expressions, which a stranger's file could
    make run for ever: only those that are the end of a layer's name are taken."""
    value = config.get(name, default)
    exceptions = config.get(pattern) or {}
    if not isinstance(exceptions, dict):
        raise ModelInvalid(f"This LoRA's {pattern} is not a map.")
    for key, exception in exceptions.items():
        end = key.removeprefix("^")
        if set(end) & set("^$*+?()[]{}|\\"):
            raise ModelInvalid(f"This LoRA's {pattern} has regular expressions, and those are not taken.")
        if layer == end or (layer.endswith(f".{end}") and end == key):
            value = exception
            break
    if type(value) not in (int, float) or not abs(value) <= NUMBER_MAX:
        raise ModelInvalid(f"This LoRA's {name} is not a number.")
    return value


def _unfit(file: LoraFile, parts: Mapping[str, nn.Module], problems: list[str]) -> ModelInvalid:
    """The error for a LoRA that does not belong to this model; says for which it was made, where that is known."""
    model = BASE_MODELS.get(getattr(parts["unet"].config, "cross_attention_dim", 0))
    details = {"problems": problems[:PROBLEMS_SHOWN]}
    if file.base_model and model and file.base_model != model:
        return ModelInvalid(f"This LoRA was made for {file.base_model}; this model is {model}.", details=details)
    return ModelInvalid(f"This LoRA does not fit the model: {problems[0]}.", details=details)

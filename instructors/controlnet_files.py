"""The ControlNets in the model folder's `controlnets/`: what models they suit, and what is told of them."""

from typing import Any

import structlog

from instructors.models import ModelFolder
from instructors.shelf import ComponentFiles, Shelf
from protocol.errors import AtelierError
from protocol.limits import NAME_LENGTH_MAX

UNION = "ControlNetUnionModel"
SHELF = Shelf("controlnets", "ControlNet", ("ControlNetModel", UNION, "SD3ControlNetModel", "FluxControlNetModel"))

log = structlog.get_logger("instructors.controlnet_files")


def family(files: ComponentFiles) -> str:
    """Of the models that it suits."""
    if files.class_name in ("ControlNetModel", UNION):
        return "sdxl" if files.config.get("addition_embed_type") == "text_time" else "sd"
    return files.class_name.removesuffix("ControlNetModel").lower()


def resident_name(files: ComponentFiles) -> str:
    """What reports of a worker's memory call it: like no model's name, and not longer than a name may be."""
    return f"controlnet/{files.name}"[:NAME_LENGTH_MAX]


def entry(controlnet_id: str, models: ModelFolder) -> dict[str, Any]:
    """What `controlnet.list` says of one of `SHELF.names`; of one that is not usable, its `problem` says why."""
    try:
        files = SHELF.find(controlnet_id, models)
    except AtelierError as error:
        log.warning("not usable", controlnet_id=controlnet_id, problem=error.message)
        return {"controlnet_id": controlnet_id, "nbytes": 0, "problem": error.message}
    return {"controlnet_id": controlnet_id, "family": family(files), "nbytes": files.nbytes}

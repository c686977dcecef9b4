"""`lora.*`: small changes to a model's weights, that a request can mix in."""

from typing import Annotated

from pydantic import Field

from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.system import NoData
from protocol.schemas.values import ModelId


class LoraUse(ActionData):
    """A LoRA in a request."""

    lora_id: ModelId  # as `lora.list` tells it
    scale: Annotated[float, Field(ge=-10, le=10)] = 1.0  # how strongly it changes the model; 0: not at all


class LoraLoad(ActionData):
    """Load a LoRA before a request needs it. Pin a worker by the request's `worker_id`."""

    lora_id: ModelId
    model_id: ModelId | None = None  # the model it is to change; null: the server's default


class LoraUnload(ActionData):
    """Free its memory; a request that names it loads it again. Pin a worker by the request's `worker_id`."""

    lora_id: ModelId


class LoraInfo(ResultData):
    """A LoRA of the worker that answers."""

    lora_id: str
    format: str | None = None  # kohya, diffusers, peft; null: not known
    rank: int | None = None  # the largest; null: not known
    targets: list[str] = []  # the parts it changes: unet, text_encoder, text_encoder_2
    base_model: str | None = None  # what it was made for, as its file tells
    trigger_words: list[str] = []  # words of a prompt that call it up, as its file tells
    nbytes: int  # of its file
    loaded: bool = False  # it is in the device's memory
    problem: str | None = None  # why it cannot be used; null: it can


class LoraListResult(ResultData):
    loras: list[LoraInfo]


ACTIONS = [
    Action("lora.list", "worker", NoData, LoraListResult, "The LoRAs in a worker's model folder."),
    Action("lora.load", "worker", LoraLoad, LoraInfo, "Load a LoRA for a model."),
    Action("lora.unload", "worker", LoraUnload, LoraInfo, "Take a LoRA out of the device's memory."),
]

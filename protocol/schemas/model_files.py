"""`model.discover`, `model.validate`, `model.convert`: what lies in the folders of models, whether it is sound, and
other forms of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from protocol.messages import Int
from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.values import ModelId

Name = Annotated[str, Field(min_length=1, max_length=500)]
ModelType = Literal[
    "pipeline", "checkpoint", "diffusion_model", "lora", "controlnet", "vae", "text_encoder", "image_encoder",
    "upscaler", "textual_inversion", "onnx", "pickle", "unknown",
]  # fmt: skip


class ModelDiscover(ActionData):
    """Look through the folders that the operator of a worker allowed. Files that stayed the same are not read again.
    Pin a worker by the request's `worker_id`."""

    folders: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = None
    # their labels: `models`, those in `catalogue.toml`, `hub`; null: all
    types: Annotated[list[ModelType], Field(min_length=1, max_length=16)] | None = None  # null: all
    families: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = None  # null: all
    after: Annotated[str, Field(max_length=500)] = ""  # only names after this one: `next` of the answer before
    limit: Annotated[Int, Field(ge=1, le=500)] = 500  # entries in the answer


class DiscoveredModel(ResultData):
    """A model, or a part of one, judged by its content."""

    name: str  # `label/path`, within the folder of that label
    type: str  # pipeline, checkpoint, diffusion_model, lora, controlnet, vae, …, pickle, unknown
    family: str | None = None  # sd1, sd2, sdxl, sd3, flux, …; null: its content does not tell
    variants: list[str] = []  # inpainting, v_prediction, refiner, …
    format: str  # diffusers, safetensors, onnx, pickle, unknown
    dtype: str | None = None  # of most of its weights
    class_name: str | None = None  # as its config says
    nbytes: int  # of its files
    facts: dict[str, int] = {}  # what else its content tells: rank, latent_channels, scale, opset, …
    id: str | None = None  # by which requests name it now: a model_id, lora_id, …; null: it lies where none finds it
    problem: str | None = None  # why it cannot be used; null: nothing speaks against it
    remedy: str | None = None  # what to do about that


class DiscoverChanges(ResultData):
    """Files and folders since this worker's scan before."""

    added: int
    changed: int
    renamed: int  # moved, and the same otherwise
    removed: int


class ModelDiscoverResult(ResultData):
    models: list[DiscoveredModel]  # by name
    total: int  # that the request asks for, on all pages
    next: str | None = None  # the `after` of the next page; null: this is the last
    changes: DiscoverChanges
    complete: bool  # false: there are more files than a scan looks at


class ModelValidate(ActionData):
    """Check a model's files. Nothing is changed. Give exactly one of `model_id` and `name`. Pin a worker by the
    request's `worker_id`."""

    model_id: ModelId | None = None
    name: Name | None = None  # of anything that `model.discover` tells
    deep: bool = False  # also load it, and make one small step or inference with it
    values: bool = True  # look at every number of the weights for NaN and infinity; takes as long as reading them

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.model_id is None) == (self.name is None):
            raise ValueError("give exactly one of model_id and name")
        return self


class Issue(ResultData):
    severity: str  # error: it cannot be used; warning: it may not do what is expected; info
    code: str  # for programs
    message: str
    remedy: str | None = None


class ModelValidateResult(ResultData):
    """`is_valid`: no issue is an error."""

    name: str  # as `model.discover` tells it
    type: str
    is_valid: bool
    validation_details: dict[str, dict[str, Any]]
    # check -> {status: passed, failed or skipped, and what it found}, in the order they were made
    issues: list[Issue]


class ModelConvert(ActionData):
    """Make another form of a model and hold it against the source before it can be used. What is there already stays
    as it is. Pin a worker by the request's `worker_id`."""

    source: Name  # a model's id, or the name of a folder of transformers in the model folder
    to: Literal["onnx", "diffusers"] = "onnx"
    # onnx: of a Stable Diffusion pipeline or a text model of transformers; diffusers: a pipeline of a single file
    precision: Literal["float32", "float16", "int8"] = "float32"
    # int8: of matrix products only, with scales found as it runs
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]  # of the new model
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    # null: the next whole number, beginning with 1


class ConvertedFile(ResultData):
    name: str  # within the model's folder
    nbytes: int


class ModelConvertResult(ResultData):
    """The new model is there under its id."""

    model_id: str  # name:version
    to: str
    precision: str
    files: list[ConvertedFile]
    nbytes: int  # of all files
    components: dict[str, dict[str, float]]
    # part -> {max_abs_error, max_rel_error, tolerance}: how far its outputs are from the source's on equal inputs, in
    # numbers and by the largest value, and how far the latter may be; empty where nothing is computed anew
    seconds: float


ACTIONS = [
    Action(
        "model.discover",
        "worker",
        ModelDiscover,
        ModelDiscoverResult,
        "What lies in a worker's folders of models.",
        light=True,
    ),
    Action("model.validate", "worker", ModelValidate, ModelValidateResult, "Whether a model's files are sound."),
    Action("model.convert", "worker", ModelConvert, ModelConvertResult, "A model in another form or precision."),
]

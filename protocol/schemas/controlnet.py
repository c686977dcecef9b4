"""`controlnet.*`: networks that hold a picture to the outline of another."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.system import NoData
from protocol.schemas.values import ImageRef, ModelId, PictureInfo, Pixels, Share

Preprocessor = Literal["none", "canny", "scribble", "softedge", "tile", "depth", "pose"]


class ControlNetUse(ActionData):
    """A ControlNet in a request, with the picture it goes by."""

    controlnet_id: ModelId  # as `controlnet.list` tells it
    image: ImageRef  # what to go by
    preprocessor: Preprocessor = "none"  # what makes a control picture of `image`; none: it is one
    preprocessor_resolution: Pixels | None = None  # shorter side that the preprocessor sees; null: the result's
    conditioning_scale: Annotated[float, Field(ge=0, le=2)] = 1.0  # how closely to follow it
    control_guidance_start: Share = 0.0  # share of the steps after which it begins
    control_guidance_end: Share = 1.0  # share of the steps after which it ends; above the start
    guess_mode: bool = False  # work where the prompt says little, not on the negative side; one for all ControlNets

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.control_guidance_start >= self.control_guidance_end:
            raise ValueError("control_guidance_start must be less than control_guidance_end")
        return self


class Preprocess(ActionData):
    """What a ControlNet would see."""

    image: ImageRef  # what to look at
    preprocessor: Preprocessor  # what makes a control picture of it
    resolution: Pixels | None = None  # shorter side that the preprocessor sees; null: the image's own


class ControlImage(PictureInfo):
    """A preprocessed picture, as PNG."""

    preprocessor: str  # what made it


class PreprocessResult(ResultData):
    images: list[ControlImage]  # one


class ControlNetInfo(ResultData):
    """A ControlNet of the worker that answers."""

    controlnet_id: str
    family: str | None = None  # of the models it suits: sd, sdxl, sd3, flux; null: not known
    nbytes: int  # of its files
    loaded: bool = False  # it is in the device's memory
    problem: str | None = None  # why it cannot be used; null: it can


class ControlNetListResult(ResultData):
    controlnets: list[ControlNetInfo]
    preprocessors: list[str]  # that this worker can run


ACTIONS = [
    Action("controlnet.list", "worker", NoData, ControlNetListResult, "The ControlNets in a worker's model folder."),
    Action("controlnet.preprocess", "worker", Preprocess, PreprocessResult, "Make a control picture."),
]

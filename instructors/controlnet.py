"""`controlnet.*`, and the ControlNets of a request for pictures: found, held against the model, loaded, and shown
what they go by."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from instructors import controlnet_files, estimators, images, preprocessors
from instructors.registry import Registry
from instructors.task import Blob, Context, Result, Task
from protocol.errors import AtelierError, InvalidRequest
from protocol.schemas import ACTIONS
from protocol.schemas.controlnet import ControlNetUse, Preprocess
from protocol.schemas.inference import PictureData
from protocol.schemas.system import NoData

if TYPE_CHECKING:
    from PIL.Image import Image

    from instructors.pictures import Plan
    from instructors.pipelines.diffusion import LoadedModel
    from instructors.pipelines.loading import LoadedComponent

FIELD = "controlnets"
PNG = "image/png"
UNION_MODES = {"pose": 0, "depth": 1, "softedge": 2, "scribble": 2, "canny": 3, "tile": 6}  # as they were trained

_keys: dict[str, set[str]] = {}  # of what has been loaded, by name; whether it is still there, the context tells


@dataclass(slots=True)
class Control:
    """A ControlNet at work in a request. `image`: what it sees, at the size that the model works at."""

    net: "LoadedComponent"
    preprocessor: str
    image: "Image"

    def to_wire(self, attachment: int) -> dict[str, Any]:
        """The entry in a result's `controlnet_images`."""
        return _entry(self.image, self.preprocessor, attachment)

    def blob(self) -> Blob:
        return Blob(PNG, cache(partial(_png, self.image)))


class List(Task):
    """All ControlNets of the model folder, one a step."""

    def __init__(self, data: NoData, context: Context) -> None:
        self._context = context
        self._names = controlnet_files.SHELF.names(context.models)
        self._found: list[dict[str, Any]] = []

    def step(self) -> Result | None:
        if len(self._found) < len(self._names):
            name = self._names[len(self._found)]
            entry = controlnet_files.entry(name, self._context.models)
            self._found.append({**entry, "loaded": is_loaded(name, self._context)})
            return None
        return Result({"controlnets": self._found, "preprocessors": preprocessors.names(self._context.models)})


class MakeControlImage(Task):
    """One step: the picture is read and the control picture made."""

    def __init__(self, data: Preprocess, context: Context) -> None:
        self._data = data
        self._context = context

    def step(self) -> Result | None:
        data, context = self._data, self._context
        image = images.decode(images.file_of(data.image, context.blobs, "image"), "image")
        made = preprocess(data.preprocessor, image, image.size, data.resolution, context)
        return Result({"images": [_entry(made, data.preprocessor, 0)]}, [Blob(PNG, partial(_png, made))])


def follow(data: PictureData, plan: "Plan", loaded: "LoadedModel", context: Context) -> list[Control]:
    """Put the request's ControlNets into the plan, in their order; each stays loaded until the job ends, at least.

    Raises ModelNotFound, Forbidden, ModelInvalid (it was made for another base model, among others) and OutOfMemory
    with the `controlnet_id` in the details; InvalidRequest and PayloadTooLarge for pictures and preprocessors.
    """
    if not data.controlnets:
        return []
    if len({use.guess_mode for use in data.controlnets}) > 1:  # the stock pipelines have one for all
        raise images.invalid(FIELD, "guess_mode must be the same for all of them")
    plan.controlnets = nets = [load(use.controlnet_id, loaded, context) for use in data.controlnets]
    if data.guidance_end < 1 and (
        plan.kind == "inpainting" or any(net.class_name == controlnet_files.UNION for net in nets)
    ):
        # the stock loops do not take back what a callback makes of their masks and control pictures
        raise images.invalid("guidance_end", "must be 1 for inpainting with ControlNets, and with a ControlNet-Union")
    size = _size(plan)
    controls = []
    for index, (use, net) in enumerate(zip(data.controlnets, nets, strict=True)):
        context.quantum()
        field = f"{FIELD}.{index}.image"
        image = plan.frame(images.decode(images.file_of(use.image, context.blobs, field), field))
        seen = preprocess(use.preprocessor, image, size, use.preprocessor_resolution, context)
        controls.append(Control(net, use.preprocessor, seen))
    plan.arguments.update(_arguments(data.controlnets, controls, plan, loaded))
    return controls


def load(controlnet_id: str, loaded: "LoadedModel", context: Context) -> "LoadedComponent":
    """The ControlNet, ready to be used with this model. Raises as `follow`."""
    from instructors.pipelines import controlnet

    try:
        loaded.check_additions("ControlNets")
        files = controlnet_files.SHELF.find(controlnet_id, context.models)
        net = controlnet.resident(files, loaded, context)
    except AtelierError as error:
        error.details["controlnet_id"] = controlnet_id
        raise
    _keys.setdefault(controlnet_id, set()).update(net.parts)
    return net


def is_loaded(controlnet_id: str, context: Context) -> bool:
    """Whether a ControlNet of this name is in the device's memory."""
    return any(context.part(key) is not None for key in _keys.get(controlnet_id, ()))


def preprocess(name: str, image: "Image", size: tuple[int, int], resolution: int | None, context: Context) -> "Image":
    """The control picture of `size` (width, height). Raises as `preprocessors.run`, `estimators.find` and `load`."""
    estimator = None
    if name in estimators.NAMES:
        files = estimators.find(name, context.models)
        key = f"estimator {name} {files.version}"
        estimator = context.resident(key, files.nbytes, lambda: estimators.load(files, context.device))
    return preprocessors.run(name, image, size=size, resolution=resolution, estimator=estimator)


def _size(plan: "Plan") -> tuple[int, int]:
    """(width, height) at which the model works. Raises InvalidRequest."""
    if "width" in plan.arguments and "height" in plan.arguments:
        return plan.arguments["width"], plan.arguments["height"]
    if "image" not in plan.arguments:
        raise InvalidRequest("With ControlNets, say the width and height: this model does not tell its own.")
    size: tuple[int, int] = plan.arguments["image"].size
    return size


def _arguments(
    uses: Sequence[ControlNetUse], controls: Sequence[Control], plan: "Plan", loaded: "LoadedModel"
) -> dict[str, Any]:
    """What the stock pipeline takes: a list of each, but for a single ControlNet."""
    own = "control_image" if loaded.takes(plan.kind, "control_image", plan.controlnets) else "image"
    arguments: dict[str, list[Any]] = {
        own: [control.image for control in controls],
        "controlnet_conditioning_scale": [use.conditioning_scale for use in uses],
        "control_guidance_start": [use.control_guidance_start for use in uses],
        "control_guidance_end": [use.control_guidance_end for use in uses],
    }
    guess = {"guess_mode": True} if uses[0].guess_mode else {}
    if any(control.net.class_name == controlnet_files.UNION for control in controls):
        return {**arguments, **guess, "control_mode": [_union_mode(index, use) for index, use in enumerate(uses)]}
    if len(uses) == 1:
        return {**{name: values[0] for name, values in arguments.items()}, **guess}
    return {**arguments, **guess}


def _union_mode(index: int, use: ControlNetUse) -> int:
    """The kind of control picture, by number. Raises InvalidRequest."""
    mode = UNION_MODES.get(use.preprocessor)
    if mode is None:
        problem = f"a ControlNet-Union must know what kind of picture it gets; it takes {', '.join(UNION_MODES)}"
        raise images.invalid(f"{FIELD}.{index}.preprocessor", problem)
    return mode


def _entry(image: "Image", preprocessor: str, attachment: int) -> dict[str, Any]:
    size = {"width": image.width, "height": image.height}
    return {"attachment": attachment, "media_type": PNG, **size, "preprocessor": preprocessor}


def _png(image: "Image") -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that compute are not installed."""
    if find_spec("torch") and find_spec("diffusers"):
        registry.add(ACTIONS["controlnet.list"], List)
        registry.add(ACTIONS["controlnet.preprocess"], MakeControlImage)

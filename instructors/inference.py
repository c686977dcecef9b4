"""`inference.text2img`, and what all actions that make pictures share. Importing this is cheap; `warm_up` imports the
libraries that compute."""

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from instructors.pictures import Pictures, Plan, check_size
from instructors.pipelines import schedulers
from instructors.registry import Registry
from instructors.task import Context
from protocol.schemas import ACTIONS
from protocol.schemas.inference import PictureData, Text2ImgData

if TYPE_CHECKING:
    from instructors.pipelines.diffusion import LoadedModel


def text2img(data: Text2ImgData, loaded: "LoadedModel", context: Context) -> Plan:
    own_width, own_height = loaded.default_size or (None, None)
    width, height = data.width or own_width, data.height or own_height
    check_size(width, height, loaded, data.num_images)
    return Plan("text2img", {**common_arguments(data), **given(width=width, height=height)})


def common_arguments(data: PictureData) -> dict[str, Any]:
    """What the pipelines of all kinds take."""
    return {
        "prompt": data.prompt,
        **given(negative_prompt=data.negative_prompt or None),
        "num_inference_steps": data.steps,
        "guidance_scale": data.guidance_scale,
    }


def given(**arguments: Any) -> dict[str, Any]:
    """Those that are not None: the family's own default stands for the others."""
    return {name: value for name, value in arguments.items() if value is not None}


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that compute are not installed."""
    if find_spec("torch") and find_spec("diffusers"):
        for name, plan in {"inference.text2img": text2img}.items():
            registry.add(ACTIONS[name], partial(Pictures, name, plan), shares=True)


def scheduler_names() -> list[str]:
    """What `scheduler` may say, in the usual spelling."""
    return schedulers.names() if find_spec("diffusers") else []


def warm_up() -> None:
    """Import the libraries, which takes seconds, before the first job needs them."""
    import instructors.pipelines.loading  # noqa: F401

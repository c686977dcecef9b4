"""LoRAs beside a model: equal to stock diffusers for one mix, and each row its own where a batch has several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import DiffusionPipeline

from instructors import lora_files
from instructors.lora_files import LoraFile
from instructors.pipelines.lora import Adapter, LoraBase
from tests.instructors import tiny, tiny_lora

Read = Callable[..., LoraFile]
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # stock's second LoRA


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp(request.param), request.param)


def pipeline_of(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return pipeline_of(folder)


@pytest.fixture
def base(pipeline: Any) -> LoraBase:
    return base_of(pipeline)


def base_of(pipeline: Any) -> LoraBase:
    names = [name for name in lora_files.COMPONENTS if getattr(pipeline, name, None) is not None]
    return LoraBase({name: getattr(pipeline, name) for name in names}, "cpu", torch.float32)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write tensors as a file, and judge it."""

    def make(tensors: dict[str, Any], name: str = "some", **metadata: str) -> LoraFile:
        return lora_files.read(tiny_lora.write(tmp_path / f"{name}.safetensors", tensors, metadata), name)

    return make


def picture(pipeline: Any, **arguments: Any) -> numpy.ndarray:
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 3, "output_type": "np", "height": 16, "width": 16}
    return pipeline("a red circle", negative_prompt="blue", generator=generator, **options, **arguments).images[0]


def picture_with(pipeline: Any, base: LoraBase, mix: tuple[tuple[Adapter, float], ...]) -> numpy.ndarray:
    """The stock pipeline's picture with the rows' LoRAs: with guidance the UNet has two rows, each encoder one."""
    with base.rows("unet", [mix] * 2), base.rows("text_encoder", [mix]):
        if hasattr(pipeline, "text_encoder_2"):
            with base.rows("text_encoder_2", [mix]):
                return picture(pipeline)
        return picture(pipeline)


@pytest.mark.parametrize("layout", tiny_lora.LAYOUTS)
def test_a_picture_with_two_loras_equals_stock_bit_for_bit(folder: Path, read: Read, layout: str) -> None:
    stock, ours = pipeline_of(folder), pipeline_of(folder)
    base, write = base_of(ours), tiny_lora.LAYOUTS[layout]
    files = [read(write(tiny_lora.layers(ours, rank=rank, seed=rank)), f"r{rank}") for rank in (4, 2)]
    first, second = (base.load(file) for file in files)
    for file in files:
        stock.load_lora_weights(file.path, adapter_name=file.lora_id)
    plain = picture(ours)
    for names, scales in ((["r4"], [0.8]), (["r4", "r2"], [0.7, -0.3]), (["r2", "r4"], [1.1, 0.3])):
        stock.set_adapters(names, scales)
        mix = tuple(({"r4": first, "r2": second}[name], scale) for name, scale in zip(names, scales, strict=True))
        expected = picture(stock)
        assert numpy.array_equal(picture_with(ours, base, mix), expected)
        assert numpy.abs(expected - plain).max() > 0.01  # it does something
    assert numpy.array_equal(picture(ours), plain)

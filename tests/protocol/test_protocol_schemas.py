"""The `data` of actions: each kind of bad input is an `invalid_request` that says which field, and why."""

import re
import time
from typing import Any

import pytest

from protocol.errors import AtelierError, InvalidRequest, UnknownAction
from protocol.limits import NAME_LENGTH_MAX
from protocol.schemas import ACTIONS, find_action, validate_data
from protocol.schemas.base import with_defaults
from protocol.schemas.inference import SEED_MAX, Img2ImgData, InpaintingData, Text2ImgData
from protocol.schemas.values import byte_refs, check_references, put_at

TEXT2IMG = "inference.text2img"
INSIDES = re.compile(r"0x[0-9a-f]{6,}|function-|<|pydantic|/|Traceback")


def text2img(**fields: Any) -> Text2ImgData:
    data = validate_data(TEXT2IMG, {"prompt": "a red circle", **fields})
    assert isinstance(data, Text2ImgData)
    return data


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0), ("width", 1), ("width", 7), ("width", 100_000), ("height", -8), ("width", 65), ("width", "64"),
        ("steps", 0), ("steps", 10_000), ("steps", 20.5), ("steps", True), ("steps", 1e300), ("steps", None),
        ("guidance_scale", float("nan")), ("guidance_scale", float("inf")), ("guidance_scale", -1),
        ("guidance_scale", "7.5"), ("guidance_scale", True),
        ("prompt", "x" * 1_000_000), ("prompt", 7), ("prompt", None), ("prompt", b"bytes"),
        ("num_images", 0), ("num_images", 17), ("num_images", True),
        ("seed", -2), ("seed", 1.5), ("seed", True), ("seed", "-1"), ("seed", "0x1"), ("seed", ""),
        ("seed", str(SEED_MAX + 1)), ("seed", "9" * 100), ("seed", [7]), ("seed", "７"),
        ("scheduler", ""), ("scheduler", "x" * 101), ("model_id", ""), ("model_id", 7),
        ("output", {"format": "gif"}), ("output", {"quality": 0}), ("output", "png"),
        ("preview", {"every_steps": 0}), ("preview", True),
    ],
)  # fmt: skip
def test_bad_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text2img(**{field: value})
    told = caught.value.details["fields"]
    assert {item["field"].split(".")[0] for item in told} == {field}
    assert field in caught.value.message
    assert not INSIDES.search(str(caught.value.to_wire()))
    assert len(str(caught.value.to_wire())) < 4096


@pytest.mark.parametrize(
    ("field", "nearest"),
    [("promt", "prompt"), ("guidance", "guidance_scale"), ("negativePrompt", "negative_prompt"), ("qqqqq", None)],
)
def test_an_unknown_field_is_told_the_nearest(field: str, nearest: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text2img(**{field: 1})
    assert caught.value.details["fields"] == [{"field": field, "problem": "unknown field", "nearest": nearest}]
    if nearest:
        assert f"did you mean {nearest}?" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "field", "nearest"),
    [
        ({"output": {"qualty": 9}}, "output.qualty", "quality"),
        ({"loras": [{"lora_id": "a"}, {"lora_id": "b", "scael": 1}]}, "loras.1.scael", "scale"),
        ({"controlnets": [{"controlnet_id": "c", "image": b"x", "scale": 1}]}, "controlnets.0.scale",
         "conditioning_scale"),
        ({"outpaint": {"width": 8}}, "outpaint.width", None),
        ({"image": {"attachment": 0, "atachment": 1}}, "image.atachment", "attachment"),
    ],
)  # fmt: skip
def test_an_unknown_field_further_in_is_told_the_nearest_of_that_place(
    fields: dict[str, Any], field: str, nearest: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate_data("inference.inpainting", {"prompt": "x", "image": b"x", "mask_image": b"x", **fields})
    assert caught.value.details["fields"] == [{"field": field, "problem": "unknown field", "nearest": nearest}]


def test_a_word_that_is_none_of_those_allowed_is_told_the_nearest() -> None:
    with pytest.raises(InvalidRequest) as caught:
        text2img(output={"format": "jpg"})
    assert caught.value.details["fields"][0]["nearest"] == "jpeg"
    with pytest.raises(InvalidRequest) as caught:
        validate_data("controlnet.preprocess", {"image": b"x", "preprocessor": "soft edge"})
    assert caught.value.details["fields"][0]["nearest"] == "softedge"
    with pytest.raises(InvalidRequest) as caught:
        text2img(sigmas=7)
    assert caught.value.details["fields"][0]["nearest"] is None


def test_a_hostile_map_of_unknown_fields_costs_little() -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest) as caught:
        text2img(output={f"k{index}": index for index in range(16_384)}, **{"y" * 1_000_000: 1})
    assert time.process_time() - began < 1
    assert len(caught.value.details["fields"]) == 16
    assert len(str(caught.value.to_wire())) < 4096


def test_a_huge_field_name_is_told_in_short() -> None:
    with pytest.raises(InvalidRequest) as caught:
        text2img(**{"y" * 1_000_000: 1})
    assert caught.value.details["fields"] == [{"field": "y" * 200, "problem": "unknown field", "nearest": None}]
    assert len(caught.value.message) < 200


def test_good_values() -> None:
    data = text2img(steps=20.0, width=64.0, height=72, guidance_scale=7, num_images=16, seed=str(SEED_MAX))
    assert (data.steps, data.width, data.guidance_scale) == (20, 64, 7.0)
    assert type(data.steps) is int
    assert data.seed_number == SEED_MAX
    assert text2img().seed_number is None
    assert text2img(seed=-1).seed_number is None
    assert text2img(seed=0).seed_number == 0
    assert text2img(seed=7.0).seed_number == 7
    assert text2img(prompt="").prompt == ""
    assert len(text2img(prompt="é" * 10_000).prompt) == 10_000


def test_an_unknown_action_is_told_the_nearest() -> None:
    with pytest.raises(UnknownAction) as caught:
        find_action("inference.text2image")
    assert caught.value.details == {"nearest": TEXT2IMG}
    with pytest.raises(UnknownAction) as caught:
        validate_data("x" * 200, {})
    assert caught.value.details == {"nearest": None}


@pytest.mark.parametrize("name", ACTIONS)
def test_no_action_swallows_an_unknown_field(name: str) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", name)
    with pytest.raises(InvalidRequest) as caught:
        validate_data(name, {"no_such_field_at_all": 1})
    assert "no_such_field_at_all" in {item["field"] for item in caught.value.details["fields"]}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("job.get", {}), ("job.get", {"job_id": ""}), ("job.get", {"job_id": "j" * 65}),
        ("job.events", {"job_id": "j", "after_seq": -1}), ("job.result", {"job_id": "j", "wait_ms": 3_600_001}),
        ("job.list", {"limit": 1001}), ("job.list", {"status": "asleep"}),
        ("session.create", {"priority": 10}), ("session.create", {"name": "n" * 201}),
        ("session.create", {"idle_timeout_ms": 0}), ("system.noop", {"sleep_ms": -1}),
    ],
)  # fmt: skip
def test_bad_data_of_other_actions(name: str, data: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        validate_data(name, data)


def test_a_worker_of_any_name_that_may_say_hello_can_be_drained() -> None:
    validate_data("worker.drain", {"worker_id": "w" * NAME_LENGTH_MAX})
    with pytest.raises(InvalidRequest):
        validate_data("worker.drain", {"worker_id": "w" * (NAME_LENGTH_MAX + 1)})


def img2img(**fields: Any) -> Img2ImgData:
    data = validate_data("inference.img2img", {"prompt": "x", "image": {"attachment": 0}, **fields})
    assert isinstance(data, Img2ImgData)
    return data


def test_strength_has_a_second_name() -> None:
    assert img2img().strength == 0.8
    assert img2img(strength=0.25).strength == img2img(denoising_strength=0.25).strength == 0.25
    with pytest.raises(InvalidRequest) as caught:
        img2img(strength=0.25, denoising_strength=0.25)
    assert caught.value.details["fields"][0]["field"] == "denoising_strength"
    assert "another name of strength" in caught.value.message


def test_a_sessions_default_gives_way_to_a_field_by_either_name() -> None:
    defaults = {"strength": 0.1, "steps": 9, "echo": 1}
    given = {"denoising_strength": 0.5}
    assert with_defaults(Img2ImgData, given, defaults) == {"denoising_strength": 0.5, "steps": 9}
    assert with_defaults(Img2ImgData, {"steps": 3}, defaults) == {"strength": 0.1, "steps": 3}
    assert with_defaults(Text2ImgData, {}, defaults) == {"steps": 9}


def test_a_mask_may_be_left_out_where_the_picture_is_widened() -> None:
    data = validate_data("inference.inpainting", {"prompt": "x", "image": b"x", "outpaint": {"top": 8}})
    assert isinstance(data, InpaintingData)
    assert (data.mask_image, data.strength, data.mask_blur) == (None, 1.0, 4)


def test_sigmas_are_a_rule_or_as_many_falling_numbers_as_steps() -> None:
    assert text2img(sigmas="beta").sigmas == "beta"
    assert text2img(sigmas=[9, 4.5, 1], steps=3).sigmas == [9.0, 4.5, 1.0]
    assert text2img(sigmas=[9.0], steps=1.0).sigmas == [9.0]
    with pytest.raises(InvalidRequest, match="has 3 numbers for 20 steps"):
        text2img(sigmas=[9, 4.5, 1])


def test_pictures_are_found_wherever_they_stand() -> None:
    uses = [{"controlnet_id": "c", "image": {"attachment": 3}}, {"controlnet_id": "c", "image": b"x"}]
    raw = {"prompt": "x", "image": {"artifact_id": "a"}, "mask_image": {"attachment": 1}, "controlnets": uses}
    data = validate_data("inference.inpainting", raw)
    assert {path for path, _ in byte_refs(data)} == {
        "image", "mask_image", "controlnets.0.image", "controlnets.1.image"
    }  # fmt: skip
    check_references(data, 4)
    with pytest.raises(InvalidRequest) as caught:
        check_references(data, 3)
    assert [item["field"] for item in caught.value.details["fields"]] == ["controlnets.0.image"]
    assert "3 came with this request" in caught.value.message
    put_at(raw, "controlnets.0.image", {"attachment": 2})
    check_references(validate_data("inference.inpainting", raw), 3)


def test_a_value_of_any_kind_names_no_picture() -> None:
    data = validate_data("system.noop", {"echo": {"attachment": 7, "list": [{"attachment": 8}]}})
    check_references(data, 0)


@pytest.mark.parametrize(
    "data",
    [
        {"loras": [7] * 16_384},
        {"controlnets": [{"image": {}}] * 16_384},
        {"sigmas": ["x"] * 16_384},
        {"sigmas": [1.0] * 16_384},
        {"controlnets": [{"k" * 1000: 1}] * 4},
        {"loras": [{f"k{index}": 1 for index in range(2000)}] * 8},
    ],
    ids=lambda data: next(iter(data)),
)
def test_hostile_lists_cost_little(data: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(AtelierError) as caught:
        text2img(**data)
    assert time.process_time() - began < 1
    assert len(str(caught.value.to_wire())) < 8192

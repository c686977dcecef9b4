"""The `data` of actions: each kind of bad input is an `invalid_request` that says which field, and why."""

import re
import time
from typing import Any

import pytest

from protocol.errors import InvalidRequest, UnknownAction
from protocol.limits import NAME_LENGTH_MAX
from protocol.schemas import ACTIONS, find_action, validate_data
from protocol.schemas.inference import SEED_MAX, Text2ImgData

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

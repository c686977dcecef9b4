"""The forms in which a request may name a model."""

import pytest

from instructors import models
from protocol import model_ids
from protocol.model_ids import Reference, by_age, model_id_of, parse, split


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("demo", Reference("demo")),
        ("demo:1", Reference("demo", "1")),
        ("demo:2024-05.rc1", Reference("demo", "2024-05.rc1")),
        ("demo@prod", Reference("demo", alias="prod")),
        ("models:/demo", Reference("demo")),
        ("models:/demo@champion", Reference("demo", alias="champion")),
        ("models:/demo/3", Reference("demo", "3")),
        ("models:/demo/Production", Reference("demo", alias="production", stage=True)),
        ("models:/demo/staging", Reference("demo", alias="staging", stage=True)),
        ("models", Reference("models")),
    ],
)
def test_forms(text: str, reference: Reference) -> None:
    assert parse(text) == reference


@pytest.mark.parametrize(
    "text",
    ["", "demo:", "demo@", "demo/1", "models:/", "models://demo", "models:/demo/", "models:/demo:1", "models:/demo/1/2",
     "demo:1@prod", "demo@a@b", "demo@pro d", "../demo", "demo/../demo", "C:\\demo", " demo", "demo\n", "demo:1\n",
     "demo:" + "1" * 65, "x" * 201, "demo:../2", "demo\x00"],
)  # fmt: skip
def test_what_no_model_is_called(text: str) -> None:
    assert parse(text) is None


def test_ids_are_put_together_and_taken_apart() -> None:
    assert split(model_id_of("m", "2")) == ("m", "2")
    assert split(model_id_of("m", None)) == ("m", None)


def test_numbers_in_versions_count_as_numbers() -> None:
    versions = ["10", "9", "1.10", "1.9", "2-rc", "2", "v12", "v3", "a"]
    assert sorted(versions, key=by_age) == ["1.9", "1.10", "2", "2-rc", "9", "10", "a", "v3", "v12"]


def test_names_are_those_that_workers_take() -> None:
    assert model_ids.NAME.pattern == models.NAME.pattern
    assert model_ids.VERSION.pattern == models.VERSION.pattern

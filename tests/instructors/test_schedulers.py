"""Schedulers by every name, on the tiny model."""

from typing import Any

import pytest

from instructors.pipelines import schedulers
from instructors.pipelines.schedulers import SHORT_NAMES, SchedulerBank, class_names, resolve
from protocol.errors import InvalidRequest
from tests.instructors.conftest import files

NEEDS_TORCHSDE = {"dpm++_sde", "dpm++_sde_karras"}
FLOW = {"flow_euler", "flow_heun"}


def test_class_names_are_those_that_diffusers_exports() -> None:
    import diffusers

    exported = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert exported - set(class_names()) == {"KarrasVeScheduler"}  # deprecated, kept elsewhere
    assert {class_name for class_name, _ in SHORT_NAMES.values()} <= set(class_names())


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DPM++ 2M Karras", "dpm++_2m_karras"),
        ("dpmpp-2m-sde", "dpm++_2m_sde"),
        ("  Euler-A ", "euler_a"),
        ("eulerdiscretescheduler", "EulerDiscreteScheduler"),
        ("UNIPC", "unipc"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert resolve(spelling)[0] == name


def test_settings_come_with_the_short_name() -> None:
    import diffusers

    bank = SchedulerBank(diffusers.DDIMScheduler(steps_offset=1, set_alpha_to_one=False))
    _, karras = bank.get("dpm++_2m_karras", 10, seed=0)
    _, plain = bank.get("dpm++_2m", 10, seed=0)
    _, sde = bank.get("DPM++ 2M SDE", 10, seed=0)
    assert karras.config.use_karras_sigmas
    assert not plain.config.use_karras_sigmas
    assert sde.config.algorithm_type == "sde-dpmsolver++"


@pytest.mark.parametrize("name", sorted(SHORT_NAMES.keys() - NEEDS_TORCHSDE - FLOW))
def test_short_names_make_pictures(generate: Any, name: str) -> None:
    result = generate(seed=1, steps=4, scheduler=name)
    assert len(files(result)) == 1
    assert result.data["images"][0]["recipe"]["scheduler"] == name


@pytest.mark.parametrize("name", class_names())
def test_class_names_make_pictures_or_say_why_not(generate: Any, name: str) -> None:
    refusal = ""
    try:
        made = generate(seed=1, steps=4, scheduler=name).data["images"][0]["recipe"]["scheduler"]
    except InvalidRequest as error:
        made, refusal = None, error.message
    assert made == name or name in refusal


@pytest.mark.parametrize("name", sorted(SHORT_NAMES.keys() - NEEDS_TORCHSDE - FLOW))
def test_a_single_step_is_done_or_refused(generate: Any, name: str) -> None:
    refusal = ""
    try:
        pictures = len(files(generate(seed=1, steps=1, scheduler=name)))
    except InvalidRequest as error:
        pictures, refusal = 0, error.message
    assert pictures == 1 or "steps" in refusal


def test_the_sde_scheduler_repeats_itself(generate: Any) -> None:
    assert files(generate(seed=1, scheduler="dpm++_sde")) == files(generate(seed=1, scheduler="dpm++_sde"))


def test_all_names_are_told() -> None:
    assert set(schedulers.names()) == {*SHORT_NAMES, *class_names()}

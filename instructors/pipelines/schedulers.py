"""Schedulers by name. Importing this is cheap: torch and diffusers are imported when a scheduler is made."""

import inspect
import re
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from protocol.errors import InvalidRequest
from protocol.schemas.base import nearest
from protocol.schemas.inference import scheduler_key

CHECKED_MAX = 10_000

log = structlog.get_logger("instructors.schedulers")

_RULES = {rule: f"use_{rule}_sigmas" for rule in ("karras", "exponential", "beta")}
_KARRAS = {_RULES["karras"]: True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_DPM2M, _EULER = "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"

SHORT_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++_2m": (_DPM2M, {}),
    "dpm++_2m_karras": (_DPM2M, _KARRAS),
    "dpm++_2m_sde": (_DPM2M, _SDE),
    "dpm++_2m_sde_karras": (_DPM2M, {**_SDE, **_KARRAS}),
    "dpm++_2s": ("DPMSolverSinglestepScheduler", {}),
    "dpm++_2s_karras": ("DPMSolverSinglestepScheduler", _KARRAS),
    "dpm++_sde": ("DPMSolverSDEScheduler", {}),
    "dpm++_sde_karras": ("DPMSolverSDEScheduler", _KARRAS),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_karras": ("KDPM2DiscreteScheduler", _KARRAS),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm2_a_karras": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "euler": (_EULER, {}),
    "euler_karras": (_EULER, _KARRAS),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun_karras": ("HeunDiscreteScheduler", _KARRAS),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "lms_karras": ("LMSDiscreteScheduler", _KARRAS),
    "pndm": ("PNDMScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc_karras": ("UniPCMultistepScheduler", _KARRAS),
}
"""Short name -> (class, settings that differ from the model's own)."""


@cache
def class_names() -> tuple[str, ...]:
    """Every scheduler class of the installed diffusers, read from its files: importing them takes seconds."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return ()
    files = sorted((Path(spec.origin).parent / "schedulers").glob("scheduling_*.py"))
    pattern = re.compile(r"^class (\w+Scheduler)\(SchedulerMixin", re.MULTILINE)
    return tuple(sorted({name for file in files for name in pattern.findall(file.read_text(encoding="utf-8"))}))


@cache
def _by_key() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Key -> (the name in its usual spelling, class, settings)."""
    named = {name: (name, class_name, settings) for name, (class_name, settings) in SHORT_NAMES.items()}
    named.update({name: (name, name, {}) for name in class_names()})
    return {scheduler_key(name): entry for name, entry in named.items()}


def names() -> list[str]:
    """All names that can be asked for, in their usual spelling."""
    return [name for name, _, _ in _by_key().values()]


def resolve(name: str) -> tuple[str, str, dict[str, Any]]:
    """(usual spelling, class name, settings). Raises InvalidRequest with the nearest known name."""
    entry = _by_key().get(scheduler_key(name))
    if entry is None:
        close = nearest(scheduler_key(name), _by_key())
        hint = _by_key()[close][0] if close else None
        message = "There is no such scheduler." + (f" Did you mean {hint}?" if hint else "")
        raise InvalidRequest(message, details={"fields": [{"field": "scheduler", "problem": message, "nearest": hint}]})
    return entry


class SchedulerBank:
    """The schedulers of one loaded model. Templates are made once; every picture gets a copy of its own."""

    def __init__(self, own: Any) -> None:
        """`own`: the scheduler that came with the model; it is only ever copied."""
        self._own = own
        self._templates: dict[tuple[str, str | None], Any] = {}
        self._steps_checked: set[tuple[Any, ...]] = set()

    def get(self, name: str | None, steps: int, seed: int, sigmas: str | list[float] | None = None) -> tuple[str, Any]:
        """(name for the recipe, a fresh scheduler). `name` None: the model's own. `sigmas`: a rule, or one a step,
        which the pipeline is to be given as well. Raises InvalidRequest where the scheduler does not exist, does not
        suit the model, or cannot do so many steps or these sigmas."""
        own_name = type(self._own).__name__
        spelled, class_name, settings = (own_name, own_name, {}) if name is None else resolve(name)
        rule = sigmas if isinstance(sigmas, str) else None
        template = self._templates.get((spelled, rule))
        if template is None:
            if rule is not None:
                settings = {**settings, **self._rule(spelled, class_name, rule)}
            template = self._templates[spelled, rule] = self._make(spelled, class_name, settings)
        self._check_steps(spelled, rule, template, sigmas if isinstance(sigmas, list) else steps)
        scheduler = deepcopy(template)
        if hasattr(scheduler, "noise_sampler_seed"):  # DPMSolverSDE draws its noise apart from the generator
            scheduler.noise_sampler_seed = seed
        return spelled, scheduler

    def _rule(self, spelled: str, class_name: str, rule: str) -> dict[str, bool]:
        """The settings that make a scheduler follow this rule and no other."""
        import diffusers

        takes = inspect.signature(getattr(diffusers, class_name).__init__).parameters
        if _RULES[rule] not in takes:
            raise _no_sigmas(f"The scheduler {spelled} has no {rule} sigmas.")
        return {setting: name == rule for name, setting in _RULES.items() if setting in takes}

    def _make(self, spelled: str, class_name: str, settings: dict[str, Any]) -> Any:
        if class_name == type(self._own).__name__ and not settings:
            return deepcopy(self._own)
        import diffusers

        if _is_flow(class_name) != _is_flow(type(self._own).__name__):
            raise InvalidRequest(f"The scheduler {spelled} does not suit this model: one of them is for flow matching.")
        try:
            return getattr(diffusers, class_name).from_config(deepcopy(self._own.config), **settings)
        except ImportError as error:
            raise InvalidRequest(
                f"The scheduler {spelled} needs {_missing(error)}, which this worker does not have."
            ) from None
        except Exception as error:
            log.info("a scheduler cannot be made", scheduler=spelled, error=repr(error))
            raise InvalidRequest(f"The scheduler {spelled} does not suit this model.") from None

    def _check_steps(self, spelled: str, rule: str | None, template: Any, steps: int | list[float]) -> None:
        """Go through all steps once with a few numbers in place of a picture: much cheaper than one real step."""
        key = (spelled, rule, steps if isinstance(steps, int) else tuple(steps))
        if key in self._steps_checked:
            return
        if isinstance(steps, list) and "sigmas" not in inspect.signature(template.set_timesteps).parameters:
            raise _no_sigmas(f"The scheduler {spelled} takes no sigmas of your own.")
        if _is_flow(type(template).__name__):
            return
        problem = _rehearse(deepcopy(template), steps)
        if problem:
            fields = [{"field": "scheduler", "problem": problem}, {"field": "steps", "problem": problem}]
            raise InvalidRequest(f"The scheduler {spelled} {problem}.", details={"fields": fields})
        if len(self._steps_checked) >= CHECKED_MAX:
            self._steps_checked.clear()
        self._steps_checked.add(key)


def ending_in_zero(scheduler: Any, sigmas: list[float]) -> list[float]:
    """One sigma a step, as this scheduler takes them: some want the 0 at the end said, others add it."""
    trial = deepcopy(scheduler)
    trial.set_timesteps(sigmas=sigmas)
    return sigmas if len(trial.timesteps) == len(sigmas) else [*sigmas, 0.0]


def _no_sigmas(problem: str) -> InvalidRequest:
    return InvalidRequest(problem, details={"fields": [{"field": "sigmas", "problem": problem}]})


def _rehearse(scheduler: Any, steps: int | list[float]) -> str | None:
    import torch

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 2, 2, generator=generator)
    words = f"{steps} steps" if isinstance(steps, int) else "these sigmas"
    try:
        if isinstance(steps, int):
            scheduler.set_timesteps(steps)
        else:
            scheduler.set_timesteps(sigmas=ending_in_zero(scheduler, steps))
    except Exception as error:
        log.info("a scheduler refuses its steps", steps=steps, error=repr(error))
        return f"cannot do {words}"
    try:
        latents = latents * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            noise = torch.randn(latents.shape, generator=generator)
            scheduler.scale_model_input(latents, timestep)
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
    except Exception as error:
        log.info("a scheduler does not work", steps=steps, error=repr(error))
        return "does not suit this model, or not with so few steps"
    return None if latents.shape[-1] == 2 and bool(torch.isfinite(latents).all()) else f"cannot do {words}"


def _is_flow(class_name: str) -> bool:
    return class_name.startswith("Flow")


def _missing(error: ImportError) -> str:
    """The name of the library that an ImportError speaks of."""
    match = re.search(r"torchsde|scipy", str(error))
    return match[0] if match else "a library"

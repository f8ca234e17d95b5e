"""Diffusion schedulers in plain NumPy, each equal to its diffusers namesake step by step."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import unknown_name
from .config import Config
from .ddim import DDIM
from .dpm_solver import DPMSolver
from .euler import Euler
from .lcm import LCM
from .noise_schedule import NoiseSchedule
from .pndm import PNDM
from .protocol import Array, Scheduler

__all__ = [
    "DDIM",
    "LCM",
    "PNDM",
    "SCHEDULERS",
    "Array",
    "Config",
    "DPMSolver",
    "Euler",
    "NoiseSchedule",
    "Scheduler",
    "default_scheduler",
    "make_scheduler",
]

SCHEDULERS: dict[str, Callable[[Config, int], Scheduler]] = {
    "ddim": DDIM,
    "pndm": PNDM,
    "euler": Euler,
    "dpm-solver": DPMSolver,
    "lcm": LCM,
}

_BY_DIFFUSERS_CLASS = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpm-solver",
    "LCMScheduler": "lcm",
}


def make_scheduler(name: str, config: Config, steps: int) -> Scheduler:
    """The scheduler called `name` for one run of `steps` steps.

    `config` is a diffusers scheduler_config.json, of any scheduler class: they all describe the model.
    Raises UserError for a name, a config or a number of steps that cannot be used.
    """
    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS)
    return SCHEDULERS[name](config, steps)


def default_scheduler(config: Config) -> str:
    """The name of the scheduler that the model came with; "ddim" where it is none of ours."""
    return _BY_DIFFUSERS_CLASS.get(str(config.get("_class_name")), "ddim")

"""DPM-Solver++ (2M): second order from two predicted clean samples, at one model call per step.

Source: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
arXiv 2211.01095, algorithm 2. With sigma = noise scale / signal scale, its lambda is -log(sigma).
"""

from __future__ import annotations

import math

import numpy as np

from .config import Config, flag, require
from .noise_schedule import NoiseSchedule, mix
from .protocol import Array
from .sigmas import karras_sigmas, sigmas_at, timesteps_at

_SUPPORTED = {
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # the last three mean midpoint to diffusers, too
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (-math.inf, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False, None),
    "variance_type": (None,),
    "clip_sample": (False, None),
}


class DPMSolver:
    """The first step and the last are of first order, which is DDIM's step.

    `lower_order_final` and `euler_at_final` ask for no more than that, so either value will do.
    """

    init_noise_sigma = 1.0
    needs_noise = False

    def __init__(self, config: Config, steps: int) -> None:
        require(config, _SUPPORTED)
        self.schedule = NoiseSchedule.from_config({"timestep_spacing": "linspace", **config})
        trained = self.schedule.sigmas
        visited = self.schedule.timesteps(steps, extra=1).round()
        sigmas = sigmas_at(visited, trained)
        if flag(config, "use_karras_sigmas"):
            sigmas = karras_sigmas(trained[-1], trained[0], steps)
            visited = timesteps_at(sigmas, trained).round()
        self.timesteps: Array = visited.astype(np.float32)
        self._sigmas = [*(float(sigma) for sigma in sigmas), 0.0]
        self._alphas = [1 / (sigma**2 + 1) for sigma in self._sigmas]
        self._previous_clean: Array | None = None

    def scale_model_input(self, sample: Array, index: int) -> Array:
        """The sample as it is."""
        return sample

    def step(self, model_output: Array, index: int, sample: Array, noise: Array | None = None) -> Array:
        """Algorithm 2, one turn of its loop; `noise` is not used."""
        alpha, next_alpha = self._alphas[index], self._alphas[index + 1]
        sigma, next_sigma = self._sigmas[index], self._sigmas[index + 1]
        clean, predicted_noise = self.schedule.predict(model_output, sample, alpha)
        previous, self._previous_clean = self._previous_clean, clean.copy()
        if previous is None or next_sigma == 0:
            return mix(clean, predicted_noise, next_alpha)
        h = math.log(sigma / next_sigma)
        r = math.log(self._sigmas[index - 1] / sigma) / h
        extrapolated: Array = clean + 0.5 / r * (clean - previous)
        kept = math.sqrt((1 - next_alpha) / (1 - alpha))
        return kept * sample + math.sqrt(next_alpha) * (1 - next_sigma / sigma) * extrapolated

    def add_noise(self, clean: Array, noise: Array, index: int) -> Array:
        """`clean` at the noise level of call `index`."""
        return mix(clean, noise, self._alphas[index])

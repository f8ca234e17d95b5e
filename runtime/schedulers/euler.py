"""Euler's method on the probability flow, in samples of growing variance (clean + sigma * noise).

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
arXiv 2206.00364, algorithm 1 without its second-order correction.
"""

from __future__ import annotations

import math

import numpy as np

from .config import Config, flag, require
from .noise_schedule import NoiseSchedule
from .protocol import Array
from .sigmas import karras_sigmas, sigmas_at, timesteps_at

_SUPPORTED = {
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero",),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "clip_sample": (False, None),
}


class Euler:
    """Its samples have variance sigma^2 + 1, and are scaled to unit variance before the UNet sees them."""

    needs_noise = False

    def __init__(self, config: Config, steps: int) -> None:
        require(config, _SUPPORTED)
        self.schedule = NoiseSchedule.from_config({"timestep_spacing": "linspace", **config})
        trained = self.schedule.sigmas
        # float32 first: between timesteps, sigma belongs to the value that the UNet is told
        visited = self.schedule.timesteps(steps).astype(np.float32).astype(np.float64)
        sigmas = sigmas_at(visited, trained)
        if flag(config, "use_karras_sigmas"):
            sigmas = karras_sigmas(sigmas[0], sigmas[-1], steps)
            visited = timesteps_at(sigmas, trained)
        self.timesteps: Array = visited.astype(np.float32)
        self._sigmas = [*(float(sigma) for sigma in sigmas), 0.0]
        largest = self._sigmas[0]
        leading = self.schedule.timestep_spacing == "leading"
        self.init_noise_sigma = math.sqrt(largest**2 + 1) if leading else largest

    def scale_model_input(self, sample: Array, index: int) -> Array:
        """The sample at unit variance: sqrt(a) * clean + sqrt(1 - a) * noise, with a = 1 / (sigma^2 + 1)."""
        return sample / math.sqrt(self._sigmas[index] ** 2 + 1)

    def step(self, model_output: Array, index: int, sample: Array, noise: Array | None = None) -> Array:
        """Along dx/dsigma, the predicted noise, down to the next sigma; `noise` is not used.

        That is sample + (next_sigma - sigma) * predicted_noise, without its loss of digits at a large sigma.
        """
        scaled = self.scale_model_input(sample, index)
        alpha = 1 / (self._sigmas[index] ** 2 + 1)
        clean, predicted_noise = self.schedule.predict(model_output, scaled, alpha)
        return clean + self._sigmas[index + 1] * predicted_noise

    def add_noise(self, clean: Array, noise: Array, index: int) -> Array:
        """`clean` with the noise of call `index`."""
        return clean + self._sigmas[index] * noise

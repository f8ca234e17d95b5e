"""LCM: jumps to the clean sample at every step, and noises it again to the next level.

Source: Luo et al., "Latent Consistency Models", arXiv 2310.04378, algorithm 3 (multistep sampling) and
section 4.3 (the skipped timesteps); the boundary scalings are of Song et al., "Consistency Models",
arXiv 2303.01469, appendix C.
"""

from __future__ import annotations

import math

import numpy as np

from .config import Config, check_steps, integer, number
from .noise_schedule import NoiseSchedule, mix
from .protocol import Array

_SIGMA_DATA = 0.5
_DEFAULTS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class LCM:
    """For models distilled as consistency models, in 1..8 steps; every step but the last needs noise.

    It visits some of the timesteps of the distillation, whatever `timestep_spacing` says.
    """

    init_noise_sigma = 1.0
    needs_noise = True

    def __init__(self, config: Config, steps: int) -> None:
        self.schedule = NoiseSchedule.from_config({**_DEFAULTS, **config})
        trained = self.schedule.train_timesteps
        distilled = integer(config, "original_inference_steps", min(50, trained), 1, trained)
        check_steps(steps, distilled)
        visited_at_distillation = np.arange(distilled, 0, -1.0) * (trained // distilled) - 1
        chosen = np.floor(np.linspace(0, distilled, steps, endpoint=False)).astype(np.int64)
        visited = visited_at_distillation[chosen]
        self.timesteps: Array = visited.astype(np.float32)
        self._timestep_scaling = number(config, "timestep_scaling", 10.0, 1e-6, 1e6)
        self._alphas = self.schedule.alphas_at(visited)
        self.schedule.check_first(self._alphas[0])

    def scale_model_input(self, sample: Array, index: int) -> Array:
        """The sample as it is."""
        return sample

    def step(self, model_output: Array, index: int, sample: Array, noise: Array | None = None) -> Array:
        """c_skip * sample + c_out * the predicted clean sample, noised to the next level if there is one."""
        clean, _ = self.schedule.predict(model_output, sample, self._alphas[index])
        scaled_timestep = float(self.timesteps[index]) * self._timestep_scaling
        distance = math.hypot(scaled_timestep, _SIGMA_DATA)
        denoised = (_SIGMA_DATA / distance) ** 2 * sample + scaled_timestep / distance * clean
        if index == len(self._alphas) - 1:
            return denoised
        if noise is None:
            raise ValueError("LCM needs noise at every step but the last")
        return mix(denoised, noise, self._alphas[index + 1])

    def add_noise(self, clean: Array, noise: Array, index: int) -> Array:
        """`clean` at the noise level of call `index`."""
        return mix(clean, noise, self._alphas[index])

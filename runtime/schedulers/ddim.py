"""DDIM: one straight step along the predicted noise per model call.

Source: Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, eq. 12 and 16.
"""

from __future__ import annotations

import math

import numpy as np

from .config import Config
from .noise_schedule import NoiseSchedule, mix
from .protocol import Array


class DDIM:
    """`eta` 0 is deterministic; with `eta` 1 each step adds as much noise as DDPM would.

    As in diffusers, a step goes back by train_timesteps // steps, which for "trailing" and "linspace"
    spacing is not always the next timestep.
    """

    init_noise_sigma = 1.0

    def __init__(self, config: Config, steps: int, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in 0..1, got {eta}")
        self.schedule = NoiseSchedule.from_config(config)
        visited = self.schedule.timesteps(steps).round()
        self.timesteps: Array = visited.astype(np.float32)
        self.needs_noise = eta > 0
        self._eta = eta
        self._alphas = self.schedule.alphas_at(visited)
        self._next_alphas = self.schedule.alphas_at(visited - self.schedule.train_timesteps // steps)
        self.schedule.check_first(self._alphas[0])

    def scale_model_input(self, sample: Array, index: int) -> Array:
        """The sample as it is."""
        return sample

    def step(self, model_output: Array, index: int, sample: Array, noise: Array | None = None) -> Array:
        """Eq. 12: the predicted clean sample, with the predicted noise put back at the next level."""
        alpha, next_alpha = self._alphas[index], self._next_alphas[index]
        clean, predicted_noise = self.schedule.predict(model_output, sample, alpha)
        if not self.needs_noise:
            return mix(clean, predicted_noise, next_alpha)
        if noise is None:
            raise ValueError("DDIM with eta > 0 needs noise at every step")
        variance = self._eta**2 * (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)  # eq. 16
        kept = math.sqrt(max(1 - next_alpha - variance, 0.0))  # rounding may go below 0
        stepped: Array = math.sqrt(next_alpha) * clean + kept * predicted_noise
        return stepped + math.sqrt(variance) * noise

    def add_noise(self, clean: Array, noise: Array, index: int) -> Array:
        """`clean` at the noise level of call `index`."""
        return mix(clean, noise, self._alphas[index])

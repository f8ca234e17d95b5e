"""PNDM in its PLMS form: DDIM's step along a noise estimate extrapolated from the last four.

Source: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv 2202.09778,
eq. 9 (the step: the same as DDIM's, written as a difference) and algorithm 2 (the extrapolation). Stable
Diffusion leaves out the paper's Runge-Kutta start; the first step is made twice instead, the second
time along the mean of the slopes at both its ends (Heun's method).
"""

from __future__ import annotations

import numpy as np

from .config import Config, require
from .noise_schedule import NoiseSchedule, mix
from .protocol import Array

_SUPPORTED = {
    "prediction_type": ("epsilon", "v_prediction"),
    "skip_prk_steps": (True,),
    "rescale_betas_zero_snr": (False, None),
    "clip_sample": (False, None),
}

# Adams-Bashforth: weights of the last 1, 2, 3 and 4 outputs, newest first.
_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class PNDM:
    """One model call more than steps: call 1 repairs the step of call 0, and changes no noise level.

    A warm start at call 1 leaves it nothing to repair, so it hands its sample on; start at 2 instead.
    The Runge-Kutta start, `skip_prk_steps` false, is refused; absent, the key is true.
    """

    init_noise_sigma = 1.0
    needs_noise = False

    def __init__(self, config: Config, steps: int) -> None:
        require(config, _SUPPORTED)
        self.schedule = NoiseSchedule.from_config({"set_alpha_to_one": False, **config})
        visited = self.schedule.timesteps(steps).round()
        visited = np.concatenate([visited[:2], visited[1:]])  # the second one twice
        self.timesteps: Array = visited.astype(np.float32)
        stride = self.schedule.train_timesteps // steps
        starts = visited.copy()
        starts[1:2] += stride  # call 1 steps to where it is, not from there
        self._levels = self.schedule.alphas_at(visited)
        self._alphas = self.schedule.alphas_at(starts)
        self._next_alphas = self.schedule.alphas_at(starts - stride)
        self._outputs: list[Array] = []  # newest first
        self._first_sample: Array | None = None

    def scale_model_input(self, sample: Array, index: int) -> Array:
        """The sample as it is."""
        return sample

    def step(self, model_output: Array, index: int, sample: Array, noise: Array | None = None) -> Array:
        """Eq. 9 along the extrapolated noise; `noise` is not used."""
        if index == 1:
            if self._first_sample is None:
                return sample
            sample = self._first_sample
            output: Array = 0.5 * model_output + 0.5 * self._outputs[0]
        else:
            if index == 0:
                self._first_sample = sample.copy()
            self._outputs = [model_output.copy(), *self._outputs[:3]]  # an engine may reuse its buffer
            weights = _WEIGHTS[len(self._outputs) - 1]
            output = weights[0] * model_output
            for weight, past in zip(weights[1:], self._outputs[1:], strict=True):
                output += weight * past
        clean, predicted_noise = self.schedule.predict(output, sample, self._alphas[index])
        return mix(clean, predicted_noise, self._next_alphas[index])

    def add_noise(self, clean: Array, noise: Array, index: int) -> Array:
        """`clean` at the noise level at which call `index` finds its sample."""
        return mix(clean, noise, self._levels[index])

"""What the inpainting loop asks of a scheduler."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]


class Scheduler(Protocol):
    """Walks one sample from noise to picture; made for one run, since multistep methods remember.

    `index` counts model calls: 0 is the noisiest. Calls are made in order, from 0 or, for a warm start
    from a known picture, from any later index with `add_noise(clean, noise, index)` as the sample.
    Samples, model outputs and noise share one shape, usually (batch, channels, height, width).
    """

    timesteps: Array
    """(calls,): what the UNet is told at each call. PNDM makes one call more than it has steps."""

    init_noise_sigma: float
    """Unit noise times this is the sample to start from at index 0."""

    needs_noise: bool
    """Whether `step` wants fresh unit noise. On the last step it may be left out."""

    def scale_model_input(self, sample: Array, index: int) -> Array:
        """The sample as the UNet wants to see it."""
        ...

    def step(self, model_output: Array, index: int, sample: Array, noise: Array | None = None) -> Array:
        """The next, less noisy sample; neither input is changed."""
        ...

    def add_noise(self, clean: Array, noise: Array, index: int) -> Array:
        """`clean` at the noise level at which call `index` finds its sample."""
        ...

"""Noise levels between the trained ones, for the solvers that work on sigma (Euler, DPM-Solver)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sigmas_at(timesteps: NDArray[np.float64], trained: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sigma at each timestep, straight lines between the trained ones."""
    return np.interp(timesteps, np.arange(len(trained)), trained)


def timesteps_at(sigmas: NDArray[np.float64], trained: NDArray[np.float64]) -> NDArray[np.float64]:
    """The timestep at which each sigma is reached, straight lines between the trained log(sigma)."""
    return np.interp(np.log(sigmas), np.log(trained), np.arange(len(trained)))


def karras_sigmas(largest: float, smallest: float, steps: int) -> NDArray[np.float64]:
    """(steps,) falling sigmas, evenly spaced in sigma^(1/7).

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    arXiv 2206.00364, eq. 5 with rho = 7.
    """
    rho = 7.0
    return np.linspace(largest ** (1 / rho), smallest ** (1 / rho), steps) ** rho

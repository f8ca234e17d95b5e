"""Structured pruning: whole inputs of a layer go, and those that stay make up for them.

Sources: Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710 (whole channels go); He, Zhang and Sun,
"Channel Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168, section 3.1 (the least squares step).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def unit_losses(weight: Array, covariance: Array, units: int) -> NDArray[np.float64]:
    """The mean squared error, summed over a layer's outputs, if one of its `units` were zero: (units,).

    A unit is a run of channels // units channels. `weight` is (..., channels), with all that a channel is multiplied by
    before the last axis; `covariance`, (channels, channels), is the mean of x x^T over inputs x. A convolution's places
    are taken as if they were uncorrelated. Raises ValueError if the shapes do not fit or anything is not finite.
    """
    channels = weight.shape[-1]
    _check(covariance, channels)
    if units < 1 or channels % units:
        raise ValueError(f"{channels} channels do not divide into {units} units")
    if not np.isfinite(weight).all():
        raise ValueError("the weight has NaN or infinity in it")
    losses = np.empty(units)
    rows = weight.reshape(-1, channels)
    for index, start in enumerate(range(0, channels, channels // units)):
        run = slice(start, start + channels // units)
        squares = rows[:, run].T @ rows[:, run]
        losses[index] = np.vdot(squares.astype(np.float64), covariance[run, run].astype(np.float64))
    return losses


def kept_units(losses: NDArray[np.float64], fraction: float) -> NDArray[np.int64]:
    """The units that stay when at most `fraction` of them goes, those of the lowest losses first; at least one."""
    gone = min(int(len(losses) * fraction + 1e-9), len(losses) - 1)
    kept: NDArray[np.int64] = np.sort(np.argsort(losses, kind="stable")[gone:])
    return kept


def unit_channels(units: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The channels of units that are `width` channels each, in order."""
    channels: NDArray[np.int64] = (units[:, None] * width + np.arange(width)).reshape(-1)
    return channels


def reconstruction(covariance: Array, kept: NDArray[np.int64], damping_fraction: float = 0.01) -> NDArray[np.float64]:
    """The M of least squares with which M x[kept] is nearest to the other inputs: (others, kept).

    `covariance`, (channels, channels), is the mean of x x^T over inputs x: second moments, without an offset.
    `damping_fraction` of the mean of its diagonal is added to the diagonal, so that it may be singular. Raises
    ValueError as `unit_losses` does, and if it is not positive definite after damping.
    """
    _check(covariance, len(covariance))
    others = np.setdiff1d(np.arange(len(covariance)), kept)
    damped = covariance[np.ix_(kept, kept)].astype(np.float64)
    mean = damped.diagonal().mean() or 1.0
    damped[np.diag_indices_from(damped)] += damping_fraction * mean
    try:
        factor = np.linalg.cholesky(damped)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the covariance is not positive definite with damping_fraction {damping_fraction}") from error
    crossing = covariance[np.ix_(kept, others)].astype(np.float64)
    solved: NDArray[np.float64] = np.linalg.solve(factor.T, np.linalg.solve(factor, crossing)).T
    return solved


def narrowed(weight: Array, kept: NDArray[np.int64], covariance: Array | None) -> NDArray[np.float32]:
    """A weight, (..., channels), for its kept inputs alone: (..., kept).

    With a covariance of the inputs, the kept ones make up for the others, W[:, k] + W[:, r] M.
    """
    smaller = weight[..., kept]
    if covariance is not None:
        others = np.setdiff1d(np.arange(weight.shape[-1]), kept)
        smaller = smaller + weight[..., others] @ reconstruction(covariance, kept).astype(np.float32)
    return np.ascontiguousarray(smaller, np.float32)


def _check(covariance: Array, channels: int) -> None:
    if covariance.shape != (channels, channels):
        raise ValueError(f"the covariance must be ({channels}, {channels}), got shape {covariance.shape}")
    if not np.isfinite(covariance).all():
        raise ValueError("the covariance has NaN or infinity in it")

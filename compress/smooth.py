"""Ranges of activations made even: what their loud channels have is moved into the weights, before both are rounded.

Source: Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models"
(arXiv 2211.10438), section 4.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .folding import SharedInput, fold, shared_inputs
from .inputs import Inputs
from .recipe import Left, Recipe

LARGEST_FACTOR = 1e5  # and its inverse the smallest: the other numbers that the factors meet stay in float32's range


def smoothing_factors(
    activation_peaks: NDArray[np.float32], weight_peaks: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """What each input channel is divided by, (channels,): |X_j|^alpha / |W_j|^(1 - alpha), of its largest magnitudes.

    `activation_peaks` are those of the inputs, `weight_peaks` those of the weights that they meet, (channels,) each.
    A channel in which either is always zero keeps factor 1.
    """
    factors = np.ones(len(activation_peaks), np.float64)
    live = (activation_peaks > 0) & (weight_peaks > 0)
    factors[live] = activation_peaks[live].astype(np.float64) ** alpha
    factors[live] /= weight_peaks[live].astype(np.float64) ** (1 - alpha)
    return np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR).astype(np.float32)


def smooth_activations(model: ir.Model, component: str, recipe: Recipe, inputs: Inputs) -> tuple[ir.Model, list[Left]]:
    """A copy of `model` that computes the same, with the inputs that the recipe smooths divided by their factors.

    Also the linear layers that the recipe is for but that keep their inputs. `inputs` are statistics of `model`.
    """
    model = model.clone()
    left: list[Left] = []
    alpha = recipe.smooth.alpha if recipe.smooth else 0.0
    for shared in reversed(shared_inputs(model)):  # a layer's rows are divided before its columns are looked at
        asked = [layer for layer in shared.layers if recipe.smooths(component, layer.op_type, layer.name)]
        if obstacle := _obstacle(shared, len(asked)):
            left = [*(Left(layer.name, f"is not smoothed: {obstacle}") for layer in asked), *left]
            continue
        fold(shared, smoothing_factors(_activation_peaks(shared, inputs), _weight_peaks(shared), alpha))
    return model, left


def _obstacle(shared: SharedInput, asked: int) -> str:
    """Why an input stays as it is, where at least one of its layers is to be smoothed."""
    if asked < len(shared.layers):
        return "it shares its input with a layer that the recipe does not smooth"
    return shared.obstacle


def _activation_peaks(shared: SharedInput, inputs: Inputs) -> NDArray[np.float32]:
    return inputs.statistics[shared.layers[0].input_name].peaks


def _weight_peaks(shared: SharedInput) -> NDArray[np.float32]:
    """The largest magnitude that each channel meets in any of the layers, (channels,)."""
    peaks = np.zeros(shared.layers[0].columns, np.float32)
    for layer in shared.layers:
        peaks = np.maximum(peaks, np.abs(layer.matrix()).max(0))
    return peaks

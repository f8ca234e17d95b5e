"""Mixed precision: for each layer one of several ways to store it, so that all fit into a budget at the least error.

The error of a whole is taken for the sum of what each layer alone brings in, as if they did not know of each other.
Source: Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers" (IEEE Trans. ASSP 36, 9):
along the lower convex hull of each layer's (size, error), the steps that gain most for each byte come first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store a layer: its size, and the error that it alone brings into what the component makes."""

    size_bytes: int
    error: float


def smallest_bytes(layers: Sequence[Sequence[Option]]) -> int:
    """The least that all layers take together."""
    return sum(min(option.size_bytes for option in options) for options in layers)


def choose(layers: Sequence[Sequence[Option]], budget_bytes: int) -> list[int]:
    """For each layer the index of its option: at most `budget_bytes` together, at about the least sum of errors.

    It is the least for the budgets that the hull's steps add up to; between them, what is left over goes to the best
    single changes that still fit. Raises ValueError for a budget below `smallest_bytes`.
    """
    if smallest_bytes(layers) > budget_bytes:
        raise ValueError(f"the layers take at least {smallest_bytes(layers)} bytes, the budget is {budget_bytes}")
    hulls = [_hull(options) for options in layers]
    chosen = [hull[0] for hull in hulls]
    left = budget_bytes - sum(options[index].size_bytes for options, index in zip(layers, chosen, strict=True))
    steps = [
        (_gain_per_byte(layers[layer], small, large), layer, small, large)
        for layer, hull in enumerate(hulls) for small, large in itertools.pairwise(hull)
    ]  # fmt: skip
    for _, layer, small, large in sorted(steps, key=lambda step: -step[0]):
        growth = layers[layer][large].size_bytes - layers[layer][small].size_bytes
        if growth > left:
            break
        chosen[layer], left = large, left - growth
    return _filled(layers, chosen, left)


def _hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull, the smallest first: each larger one has less error, at a falling gain."""
    order = sorted(range(len(options)), key=lambda index: (options[index].size_bytes, options[index].error))
    hull: list[int] = []
    for index in order:
        if hull and options[index].error >= options[hull[-1]].error:
            continue
        while len(hull) > 1 and _gain_per_byte(options, hull[-2], hull[-1]) <= _gain_per_byte(options, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _gain_per_byte(options: Sequence[Option], small: int, large: int) -> float:
    growth = options[large].size_bytes - options[small].size_bytes
    return (options[small].error - options[large].error) / growth


def _filled(layers: Sequence[Sequence[Option]], chosen: list[int], left: int) -> list[int]:
    """The choice after single changes that fit into the bytes that are left, those of the largest gain first."""
    while True:
        changes = [
            (options[now].error - option.error, layer, index)
            for layer, (options, now) in enumerate(zip(layers, chosen, strict=True))
            for index, option in enumerate(options)
            if option.error < options[now].error and option.size_bytes - options[now].size_bytes <= left
        ]
        if not changes:
            return chosen
        _, layer, index = max(changes)
        left -= layers[layer][index].size_bytes - layers[layer][chosen[layer]].size_bytes
        chosen[layer] = index

"""How long layers take on a device that was measured: from layers like them, by size.

The points of a calibration are interpolated in logarithms: of products the operations a second, over the number of
rows and the mean number of channels; of other layers the seconds, over the number of elements. Beyond the points the
nearest one's rate is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError
from .profiles import Point, Profile
from .workload import Layer, attention_triples

Numbers = NDArray[np.float64]
SCORES = "attention"
CALL = "call"  # the kind of the point that says what a run of an engine costs before its first layer
NEARBY = ("move", "elementwise")  # what attention's timed points hold besides its products


def measured_seconds(layers: Sequence[Layer], profile: Profile, target: str) -> Numbers:
    """Seconds of every layer, (layers,), on the engine of `target`; the first bears the cost of the call."""
    if target not in profile.measured:
        known = ", ".join(profile.measured)
        raise UserError(
            f"{profile.name} was not measured with {target or 'no target'}; it was with {known}",
            hint="run outzoom devices --calibrate, or predict a bundle of a target that was measured",
        )
    tables: dict[str, Table] = {one: Table(points) for one, points in profile.measured[target].items()}
    inside = attention_parts(layers)
    seconds = np.zeros(len(layers))
    for index, layer in enumerate(layers):
        if inside[index]:
            continue
        asked = layer.data_type if layer.is_product else ("float32" if layer.output_bits == 32 else "float16")
        names = (asked, "float32", "float16")
        table = next(tables[name] for name in names if name in tables)
        seconds[index] = table.seconds(layer)
    if len(layers):
        seconds[0] += next(iter(tables.values())).call_seconds
    return seconds


def attention_parts(layers: Sequence[Layer]) -> list[bool]:
    """Which layers a timed attention has in it: from its inputs' reordering to its output's, but the first product.

    Projections may stand between them, in whatever order the graph was written; they are layers of their own.
    """
    inside = [False] * len(layers)
    for before, softmax, after in attention_triples(layers):
        inside[softmax] = inside[after] = True
        for start, stop in ((before - 1, -1), (softmax - 1, before), (after - 1, softmax)):
            _mark(layers, inside, range(start, stop, -1))
        _mark(layers, inside, range(after + 1, len(layers)), passes=())
    return inside


def _mark(
    layers: Sequence[Layer], inside: list[bool], places: Iterable[int], passes: Sequence[str] = ("linear",)
) -> None:
    for place in places:
        layer = layers[place]
        if layer.kind in NEARBY and layer.operands == 1:
            inside[place] = True
        elif layer.kind not in passes:
            return


class Table:
    """The points of one engine and data type."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.by_kind: dict[tuple[str, int], list[Point]] = {}
        for point in points:
            self.by_kind.setdefault((point.kind, point.kernel), []).append(point)
        calls = self.by_kind.get((CALL, 1), [])
        self.call_seconds = calls[0].seconds if calls else 0.0

    def seconds(self, layer: Layer) -> float:
        """Of a layer, from those of its kind and kernel, or the nearest kind there is."""
        kernel = 1 if layer.kernel_height == 1 else 3
        kinds = [(layer.kind, kernel), (layer.op, 1), (layer.kind, 1), ("conv", 3) if kernel == 3 else ("linear", 1)]
        if not layer.is_product:
            kinds = [(layer.op, 1), (layer.kind, 1)]
        points = next((self.by_kind[kind] for kind in kinds if kind in self.by_kind), None)
        if points is None:
            return 0.0
        if not layer.is_product:
            return _of_elements(points, layer.output_elements)
        rows = layer.rows * (layer.batch if layer.kind == SCORES else 1)
        wide = layer.columns * layer.depth / kernel**2
        rate = _rate(points, rows, np.sqrt(wide))
        repeats = layer.groups if layer.kind == SCORES else layer.batch * layer.groups
        return repeats * rows * layer.columns * layer.depth / rate


def _of_elements(points: Sequence[Point], elements: int) -> float:
    ordered = sorted(points, key=lambda point: point.rows)
    sizes = np.log([point.rows for point in ordered])
    times = np.log([point.seconds for point in ordered])
    if elements > ordered[-1].rows:
        return ordered[-1].seconds * elements / ordered[-1].rows
    return float(np.exp(np.interp(np.log(max(elements, 1)), sizes, times)))


def _rate(points: Sequence[Point], rows: float, width: float) -> float:
    """MACs a second at a number of rows and a width, by weights of the distance in logarithms to the points near."""
    places = np.array([(np.log2(point.rows), np.log2(_width(point))) for point in points])
    rates = np.log([point.rows * point.columns * point.depth / point.seconds for point in points])
    widths = np.unique(places[:, 1])
    at_width = []
    for one in widths:  # along the rows at each width, then across the widths
        chosen = places[:, 1] == one
        order = np.argsort(places[chosen, 0])
        at_width.append(np.interp(np.log2(rows), places[chosen, 0][order], rates[chosen][order]))
    return float(np.exp(np.interp(np.log2(width), widths, at_width)))


def _width(point: Point) -> float:
    return float(np.sqrt(point.columns * point.depth / point.kernel**2))

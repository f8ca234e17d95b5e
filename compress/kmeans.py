"""Shared weights: every weight is an index of a few bits into a small codebook, which k-means finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK = 1 << 17  # elements worked on at a time: what is temporary stays in the processor's cache
_PATTERNS = 1 << 16  # bit patterns of a float16
_FINE_BINS = 4096  # a histogram of fewer bins may hide what is left to share inside of a bin

# The dynamic programme chooses among so many positions for the cuts between clusters. Inertia above the best known,
# Lloyd's iterations included, for 300,000 float16 values at 2 / 3 / 4 / 5 / 8 bits:
#                               Gaussian                               Student's t, 3 degrees of freedom
#   linear start                0 / 0.001 / 0.02 / 6.7 / 180 %         0 / 21 / 67 / 150 / 1500 %
#   start at quantiles          0 / 0.001 / 0.01 / 0.5 / 230 %         0 / 0.01 / 0.1 / 10 / 1900 %
#   programme, 32 for an entry  0 / 0 / 0.002 / 0.007 / 0.2 %          0 / 0.001 / 0.003 / 0.009 / 0.1 %
# The last is with at most 2048 positions: 4096 gain no more than what is left of that, and take twice the time.
_CUTS_FOR_AN_ENTRY = 32
_LEAST_CUTS = 512
_MOST_CUTS = 2048

# The finite float16 patterns from the smallest value to the largest, without the pattern of -0.0.
_ORDER = np.concatenate([np.arange(0xFBFF, 0x8000, -1), np.arange(0x7C00)])
_HALVES = _ORDER.astype(np.uint16).view(np.float16).astype(np.float64)


@dataclass(frozen=True, eq=False)
class SharedWeights:
    """A weight as indices into codebooks: element `w` of group `g` stands for `codebook[g, indices[w]]`.

    `indices`: the weight's shape, each below 2**bits. `codebook`: `(groups, 2**bits)`, ascending in each row; the
    first axis of the weight is cut in `groups` equal runs. Raises ValueError if the two do not fit each other.
    """

    indices: NDArray[np.uint8]
    codebook: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.indices.dtype != np.uint8 or self.codebook.dtype != np.float32 or self.codebook.ndim != 2:
            raise ValueError(
                f"shared weights are uint8 indices and a float32 codebook of 2 axes, not {self.indices.dtype} "
                f"and {self.codebook.dtype} of {self.codebook.ndim}"
            )
        _check_groups(self.indices.shape, self.groups)
        entries = self.codebook.shape[1]
        if entries not in {2**bits for bits in range(1, 9)}:
            raise ValueError(f"a codebook has 2, 4, ... 256 entries, not {entries}")
        if self.indices.max() >= entries:
            raise ValueError(f"index {self.indices.max()} is beyond a codebook of {entries} entries")

    @property
    def bits(self) -> int:
        """Bits of one index."""
        return int(self.codebook.shape[1]).bit_length() - 1

    @property
    def groups(self) -> int:
        """Codebooks, each for an equal run of the weight's first axis."""
        return int(self.codebook.shape[0])

    def size_bits(self, entry_bits: int = 32) -> int:
        """Bits to store: the indices packed without gaps, and codebook entries of `entry_bits` each."""
        return self.indices.size * self.bits + self.codebook.size * entry_bits


def compress(
    weight: NDArray[np.float32],
    bits: int,
    groups: int = 1,
    importance: ArrayLike | None = None,
    keep_zero: bool = False,
) -> SharedWeights:
    """The shared weights of least squared error or next to it (0.01 % up to 5 bits, 0.2 % at 8): k-means in 1-D.

    `weight`: at least one axis; the first is cut in `groups` equal runs, each with a codebook of 2**bits entries,
    bits 1 to 8. `importance`: what each squared error counts, non-negative, of a shape that broadcasts to the
    weight's; where a group's is zero throughout, all its weights count alike. `keep_zero`: 0.0 is an entry of each
    codebook and exact zeros map to it. A group with no more distinct values than entries is kept exactly, and spare
    entries repeat the last. At most 512 distinct values are shared optimally; float32 weights that are no
    float16 values are binned by their rounding to float16 to find the entries (the means of the true values).

    Raises ValueError for bits, groups or an importance other than these, and for a weight that is empty or not finite.

    Source: weight sharing, Han et al. 2016, section 3 (arXiv 1510.00149). Optimal k-means in one dimension: Wang &
    Song 2011 (The R Journal 3/2); by divide and conquer, Grønlund et al. 2017, section 2 (arXiv 1701.07204).
    """
    weight = np.asarray(weight, np.float32)
    if not 1 <= bits <= 8:
        raise ValueError(f"an index takes 1 to 8 bits, not {bits}")
    _check_groups(weight.shape, groups)
    if not np.isfinite(weight).all():
        raise ValueError("the weight has NaN or infinity in it")
    shares = _shares(importance, weight.shape)
    indices = np.empty(weight.shape, np.uint8)
    codebook = np.empty((groups, 2**bits), np.float32)
    for run, entries in zip(_runs(weight.shape, groups), codebook, strict=True):
        values, masses = _histogram(weight[run], shares[run])
        entries[:] = _centroids(values, masses, entries.size, keep_zero)
        _assign(weight[run], entries, indices[run])
    return SharedWeights(indices, codebook)


def decompress(shared: SharedWeights) -> NDArray[np.float32]:
    """The weight that `shared` stands for, of the shape of its indices."""
    weight = np.empty(shared.indices.shape, np.float32)
    for run, entries in zip(_runs(weight.shape, shared.groups), shared.codebook, strict=True):
        for index, values in _chunks(shared.indices[run], out=weight[run]):
            values[...] = entries[index]
    return weight


def inertia(weight: NDArray[np.float32], shared: SharedWeights, importance: ArrayLike | None = None) -> float:
    """The sum of squared errors of `shared` against `weight`, each times its importance; what `compress` minimises.

    `importance`: as `compress` takes it, but zeros throughout are taken at their word and the sum is 0. Raises
    ValueError if the weight has another shape than the indices, or for an importance that `compress` refuses.
    """
    weight = np.asarray(weight, np.float32)
    if weight.shape != shared.indices.shape:
        raise ValueError(f"a weight of shape {weight.shape} has no indices of shape {shared.indices.shape}")
    shares = _shares(importance, weight.shape)
    total = 0.0
    for run, entries in zip(_runs(weight.shape, shared.groups), shared.codebook.astype(np.float64), strict=True):
        for values, index, share in _chunks(weight[run], shared.indices[run], shares[run]):
            errors = values - entries[index]
            total += float(share @ (errors * errors))
    return total


def _check_groups(shape: tuple[int, ...], groups: int) -> None:
    if 0 in shape or not shape:
        raise ValueError(f"a weight of shape {shape} has no elements along a first axis")
    if groups < 1 or shape[0] % groups:
        raise ValueError(f"{groups} groups do not divide the {shape[0]} channels of the first axis")


def _runs(shape: tuple[int, ...], groups: int) -> Iterator[slice]:
    """The slices of the first axis that belong to each group."""
    length = shape[0] // groups
    return (slice(start, start + length) for start in range(0, shape[0], length))


def _shares(importance: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The importance as a view of the weight's shape; 1 where there is none."""
    shares = np.asarray(1.0 if importance is None else importance, np.float64)
    if not (np.isfinite(shares).all() and (shares >= 0).all()):
        raise ValueError(f"an importance is finite and not negative, not {shares.min()} to {shares.max()}")
    try:
        return np.broadcast_to(shares, shape)
    except ValueError:
        raise ValueError(f"an importance of shape {shares.shape} does not broadcast to a weight of {shape}") from None


def _chunks(*operands: NDArray[Any], out: NDArray[Any] | None = None) -> Iterator[tuple[NDArray[Any], ...]]:
    """The elements side by side, as short flat arrays; what is put into the last goes to `out`."""
    arrays = operands if out is None else (*operands, out)
    flags: list[list[Literal["readonly", "writeonly"]]] = [["readonly"] for _ in operands]
    if out is not None:
        flags.append(["writeonly"])
    with np.nditer(arrays, ["external_loop", "buffered"], flags, buffersize=_CHUNK) as chunks:
        yield from chunks


def _histogram(
    weight: NDArray[np.float32], shares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ascending values and the summed importance of each; every distinct value if there are few."""
    if not shares.any():
        shares = np.broadcast_to(1.0, shares.shape)
    if weight.size > _PATTERNS:
        scale = _half_scale(weight)
        exact, sums = True, np.zeros((3, _PATTERNS))
        for chunk, share in _chunks(weight, shares):
            patterns, kept = _halves(chunk, scale)
            exact &= kept
            sums[0] += np.bincount(patterns, minlength=_PATTERNS)
            sums[1] += np.bincount(patterns, share, _PATTERNS)
            sums[2] += np.bincount(patterns, share * chunk, _PATTERNS)
        sums[:, 0] += sums[:, 0x8000]  # -0.0 is 0.0
        counts, masses, moments = sums[:, _ORDER]
        if exact:
            return _HALVES[counts > 0] / scale, masses[counts > 0]
        used = masses > 0
        if np.count_nonzero(used) >= _FINE_BINS:
            return moments[used] / masses[used], masses[used]
    values = np.unique(weight)
    masses = np.zeros(values.size)
    for chunk, share in _chunks(weight, shares):
        masses += np.bincount(np.searchsorted(values, chunk), share, values.size)
    return values.astype(np.float64), masses


def _half_scale(weight: NDArray[np.float32]) -> np.float32:
    """The power of two that brings the weight to the top of float16's range, where no small value is lost."""
    exponent = int(np.frexp(max(weight.max(), -weight.min()))[1])
    return np.float32(2.0 ** min(15 - exponent, 127))


def _halves(chunk: NDArray[np.float32], scale: np.float32) -> tuple[NDArray[np.uint16], bool]:
    """The bit patterns of the scaled values in float16, and whether they lost nothing."""
    scaled = chunk * scale
    halves = scaled.astype(np.float16)
    return halves.view(np.uint16), np.array_equal(halves, scaled)


def _assign(weight: NDArray[np.float32], entries: NDArray[np.float32], indices: NDArray[np.uint8]) -> None:
    """Writes the index of each weight's nearest entry."""
    wide = entries.astype(np.float64)
    thresholds = (wide[1:] + wide[:-1]) / 2
    if weight.size <= _PATTERNS:
        for chunk, index in _chunks(weight, out=indices):
            index[...] = np.searchsorted(thresholds, chunk)
        return
    scale = _half_scale(weight)
    table = np.zeros(_PATTERNS, np.uint8)
    table[_ORDER] = np.searchsorted(thresholds, _HALVES / scale)
    table[0x8000] = table[0]
    for chunk, index in _chunks(weight, out=indices):
        patterns, exact = _halves(chunk, scale)
        index[...] = table[patterns] if exact else np.searchsorted(thresholds, chunk)


def _centroids(
    values: NDArray[np.float64], masses: NDArray[np.float64], entries: int, keep_zero: bool
) -> NDArray[np.float64]:
    """The ascending codebook for a histogram, of which 0.0 is an entry if it has to be."""
    if keep_zero and 0 not in values:
        position = np.searchsorted(values, 0)
        values, masses = np.insert(values, position, 0), np.insert(masses, position, 0)
    if values.size > entries:
        # What weighs nothing beside the rest, to the precision of the sums, has no say.
        used = masses > 1e-12 * masses.sum()
        if keep_zero:
            used |= values == 0
        values, masses = values[used], masses[used]
    if values.size > entries:
        values = _cluster(values, masses / masses.sum(), entries, keep_zero)
    return np.pad(values, (0, entries - values.size), "edge")


def _cluster(
    values: NDArray[np.float64], masses: NDArray[np.float64], clusters: int, keep_zero: bool
) -> NDArray[np.float64]:
    """The centroids of at most `clusters` clusters of more values than that."""
    if keep_zero:
        zero = int(np.searchsorted(values, 0))
        masses[zero] = 1  # any: the cluster of zero has its centroid there, whatever zero weighs
        centre = 0.0
    else:
        zero = values.size
        centre = float(values @ masses)  # moments about the mean lose no digits
    values = values - centre
    moments = values * masses
    cuts = _candidates(values, masses, min(max(_CUTS_FOR_AN_ENTRY * clusters, _LEAST_CUTS), _MOST_CUTS))
    mass, moment = (np.concatenate([[0.0], np.cumsum(terms)])[cuts] for terms in (masses, moments))
    pinned = int(np.searchsorted(cuts, zero, "right")) - 1
    starts = cuts[_best_starts(mass, moment, clusters, pinned)]
    # beside outliers that drown them, the last digits of near centroids may be in the wrong order
    return np.sort(_lloyd(values, masses, moments, starts, zero) + centre)


def _candidates(values: NDArray[np.float64], masses: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Ascending positions for cuts between clusters, 0 and the end among them: all, or about `most` of them."""
    if values.size <= most:
        return np.arange(values.size + 1)
    # As dense as the entries of a good codebook of that size, which is the cube root of the density (Panter & Dite
    # 1951). A far outlier would draw all of them, so what one bin has beyond its one position goes to the others.
    spread = np.cbrt(masses * np.gradient(values) ** 2)
    for _ in range(20):  # settles in fewer
        spread = np.minimum(spread, spread.sum() / most)
    spread = np.cumsum(spread)
    inner = np.searchsorted(spread, (np.arange(most) + 0.5) / most * spread[-1])
    return np.unique(np.concatenate([[0], inner, [values.size]]))


def _best_starts(
    mass: NDArray[np.float64], moment: NDArray[np.float64], clusters: int, pinned: int
) -> NDArray[np.intp]:
    """Where each of the clusters starts in the partition of n bins that has the least inertia: `(clusters,)`.

    `mass` and `moment` `(n + 1,)` are sums over the bins before each position. The cluster with the bin `pinned`
    has its centroid at 0; n pins none.
    """
    n = mass.size - 1
    gains = np.concatenate([[-np.inf], _gains(mass, moment, np.zeros(n, np.intp), np.arange(1, n + 1), pinned)])
    layers = []
    for before in range(1, clusters):
        gains, starts = _add_cluster(gains, before, mass, moment, pinned)
        layers.append(starts)
    chosen = [n]
    for starts in reversed(layers):
        chosen.append(starts[chosen[-1]])
    return np.array([0, *chosen[:0:-1]])


def _add_cluster(
    gains: NDArray[np.float64], before: int, mass: NDArray[np.float64], moment: NDArray[np.float64], pinned: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """From the best gains of `before` clusters up to each position, those of one more, and where that one starts.

    The best start never moves back as the end moves on. So the middle end is solved first, then the middles of the
    two halves, each between the starts of its neighbours, and so on: all ends of a depth are solved at once.
    """
    n = mass.size - 1
    ends = n - before  # of the clusters so far and one more, each with a bin of its own
    step = 1 << (ends.bit_length() - 1)
    best = np.full(n + 1, -np.inf)
    found = np.full(2 * step + 1, n)  # the start for the end `before + position`
    found[0] = before
    while step:
        position = np.arange(step, ends + 1, 2 * step)
        end = before + position
        low = found[position - step]
        tried = np.minimum(found[position + step], end - 1) - low + 1
        first = np.cumsum(tried) - tried
        start = np.arange(tried.sum()) + np.repeat(low - first, tried)
        gain = gains[start] + _gains(mass, moment, start, np.repeat(end, tried), pinned)
        best[end] = np.maximum.reduceat(gain, first)
        hits = np.flatnonzero(gain == np.repeat(best[end], tried))
        found[position] = start[hits[np.searchsorted(hits, first)]]
        step //= 2
    return best, np.concatenate([np.zeros(before, np.intp), found[: ends + 1]])


def _gains(
    mass: NDArray[np.float64], moment: NDArray[np.float64], start: NDArray[np.intp], end: NDArray[np.intp], pinned: int
) -> NDArray[np.float64]:
    """By how much a centroid lowers the inertia of each cluster below that about 0."""
    gains: NDArray[np.float64] = (moment[end] - moment[start]) ** 2 / (mass[end] - mass[start])
    gains[(start <= pinned) & (pinned < end)] = 0
    return gains


def _lloyd(
    values: NDArray[np.float64],
    masses: NDArray[np.float64],
    moments: NDArray[np.float64],
    starts: NDArray[np.intp],
    zero: int,
) -> NDArray[np.float64]:
    """The centroids where Lloyd's iterations from these clusters settle; a cluster that is left empty is dropped."""
    best = -np.inf
    while True:
        mass, moment = np.add.reduceat(masses, starts), np.add.reduceat(moments, starts)
        if zero < values.size:
            moment[np.searchsorted(starts, zero, "right") - 1] = 0
        centroids: NDArray[np.float64] = moment / mass
        gain = float(moment @ centroids)
        if gain <= best:
            return centroids
        best = gain
        between = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        starts = np.unique(np.concatenate([[0], between[between < values.size]]))

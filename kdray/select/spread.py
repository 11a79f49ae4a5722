"""RAD's choice among hundreds of millions: k* of Corollary 1 without sorting, draws without listing who may be drawn.

N = OPT(k*) is the root of sum over all gains above v of (1 - v / g) = (1 + w) m, which falls in v. Sums over buckets of
float32 numbers, cut by their leading bits, show in which bucket it lies; that bucket alone is sorted.
"""

from collections.abc import Iterator

import numpy as np

from kdray.select.rad import inclusion, penalty
from kdray.select.rounding import round_parts

_SHIFT = 15
"""Bits of a float32 that a bucket does not tell apart: 256 buckets between a number and its double."""
_LEAST = 1e-30
_CHUNK = 1 << 18


def draw(gains: np.ndarray, draws: int, mistakes: float, w: float | None, generator: np.random.Generator) -> np.ndarray:
    """b different candidates, drawn with the probabilities of `kdray.select.rad.inclusion`.

    Takes the memory of the gains and little more, unless min(b p, 1) clips: then all are sorted.

    Args:
        gains: float32 [n], none negative.
        draws: b, in [0, n].
        mistakes, w: see `kdray.select.rad.distribution`.

    Returns:
        int64 [b], ascending.

    Raises:
        ValueError: an argument out of its range.
    """
    return round_parts(chances(gains, draws, mistakes, w), generator)


def chances(gains: np.ndarray, draws: int, mistakes: float, w: float | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`kdray.select.rad.inclusion` in parts, for `round_parts`: (ids, int64 [B]; probabilities, float64 [B]).

    Those whose probability is 0 may be left out. Arguments and errors as of `draw`.
    """
    gains = np.ascontiguousarray(gains, dtype=np.float32)
    w = penalty(len(gains), mistakes, w, draws)
    least, total = _support(gains, (1.0 + w) * mistakes)
    if total * least < draws or draws == 0:
        probs = inclusion(gains, draws, mistakes, w)
        yield np.arange(len(probs)), probs
        return
    for begin in range(0, len(gains), _CHUNK):
        some = gains[begin : begin + _CHUNK]
        ids = np.flatnonzero(some >= least)
        # The last bit of a quotient may take a certain one past 1.
        yield ids + begin, np.minimum(1.0, draws / total / some[ids].astype(np.float64))


def _support(gains: np.ndarray, against: float) -> tuple[np.float32, float]:
    """The smallest gain in the support, and the sum of 1 / g over it; (0, 0) where the game is lost."""
    counts, inverses = _buckets(gains)
    edges = (np.arange(len(counts), dtype=np.uint32) << _SHIFT).view(np.float32)
    counts[edges < _LEAST] = 0
    inverses[edges < _LEAST] = 0.0
    above, weight = (np.cumsum(some[::-1])[::-1] for some in (counts, inverses))  # from the bucket on
    below = edges[:-1].astype(np.float64)  # the last is infinite, and empty
    inside = np.flatnonzero((above[:-1] > 0) & (above[:-1] - below * weight[:-1] >= against))
    if len(inside) == 0:
        return np.float32(0.0), 0.0
    bucket = inside[-1]
    low, high = edges[bucket], edges[bucket + 1]
    some = np.sort(gains[(gains >= low) & (gains < high)])[::-1]
    k = above[bucket + 1] + np.arange(len(some) + 1)
    total = weight[bucket + 1] + np.concatenate([[0.0], np.cumsum(1.0 / some.astype(np.float64))])
    values = np.divide(k - against, total, out=np.full(len(k), -np.inf), where=total > 0)
    last = int(values.argmax())
    if last == 0:
        return high, float(total[0])
    least = some[last - 1]
    return least, float(total[np.count_nonzero(some >= least)])


def _buckets(gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many gains each bucket holds, and the sum of 1 / g over them."""
    size = (0x7F800000 >> _SHIFT) + 1  # up to infinity
    counts, inverses = np.zeros(size, dtype=np.int64), np.zeros(size)
    for begin in range(0, len(gains), _CHUNK):
        some = gains[begin : begin + _CHUNK]
        keys = (some.view(np.uint32) >> _SHIFT).astype(np.int64)
        if not (some >= 0).all() or keys.max() >= size - 1:
            raise ValueError("gains must be finite and not negative: 1 - margin, 1 - confidence and entropy are")
        counts += np.bincount(keys, minlength=size)
        inverses += np.bincount(keys, weights=1.0 / np.maximum(some, np.float32(_LEAST)), minlength=size)
    return counts, inverses

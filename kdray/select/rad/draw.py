"""RAD's draw from hundreds of millions of candidates: k* of Corollary 1 without a sort, and probabilities in parts.

v = OPT(k*) is the root of F(v) = (1 + w) m, where F(v) is the sum of 1 - v / g over all gains g above v. A sample of
the gains gives an interval that should contain the root. One pass over all gains checks the interval and collects the
gains in it. These determine k*.
"""

from collections.abc import Iterator

import numpy as np

from kdray.select.rad.game import distribution, inclusion, penalty
from kdray.select.rounding import round_parts

_LEAST = np.float32(1e-30)
_CHUNK = 1 << 16  # gains processed together: intermediate arrays stay in the processor's cache
_SAMPLE = 1 << 16
_FAR = 4.0  # half the width of the interval, in standard deviations of F in the sample


def draw(gains: np.ndarray, draws: int, mistakes: float, w: float | None, generator: np.random.Generator) -> np.ndarray:
    """Draw b distinct candidates with the probabilities of `kdray.select.rad.game.inclusion`.

    This needs little memory beyond the gains, unless min(b p, 1) clips. In that case all gains are sorted.

    Args:
        gains: float32 [n], none negative.
        draws: b, in [0, n].
        mistakes, w: see `kdray.select.rad.game.distribution`.

    Returns:
        int64 [b], ascending.

    Raises:
        ValueError: an argument is out of its range.
    """
    return round_parts(chances(gains, draws, mistakes, w), generator)


def chances(gains: np.ndarray, draws: int, mistakes: float, w: float | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The probabilities of `kdray.select.rad.game.inclusion`, in parts for `round_parts`.

    Arguments and errors are those of `draw`.

    Yields:
        (ids int64 [B], probabilities float64 [B]). Candidates of probability 0 may be left out.
    """
    gains = np.ascontiguousarray(gains, dtype=np.float32)
    w = penalty(len(gains), mistakes, w, draws)
    least, total = _support(gains, (1.0 + w) * mistakes)
    if total * float(least) < draws or draws == 0:
        probs = inclusion(gains, draws, mistakes, w)
        yield np.arange(len(probs)), probs
        return
    each = draws / total
    for begin, some in _chunks(gains):
        held = np.flatnonzero(some >= least)
        probs = np.divide(each, some[held], dtype=np.float64)
        # Rounding may raise the quotient of a certain candidate above 1.
        yield held + begin, np.minimum(1.0, probs, out=probs) if each > float(least) else probs


def most_draws(gains: np.ndarray, mistakes: float, w: float | None) -> int:
    """The largest b for which no b p*_i exceeds 1 (RAD, section 3.3); at least 1.

    Arguments and errors are those of `draw`.
    """
    gains = np.ascontiguousarray(gains, dtype=np.float32)
    least, total = _support(gains, (1.0 + penalty(len(gains), mistakes, w)) * mistakes)
    if total == 0.0:  # no draw is worth anything against the adversary, and the one that loses least is sought
        return max(1, int(1.0 / distribution(gains, mistakes, w).max() + 1e-6))
    return max(1, int(total * float(least) + 1e-9))


def _support(gains: np.ndarray, against: float) -> tuple[np.float32, float]:
    """The smallest gain in the support, and the sum of 1 / g over the support; (0, 0) if a loss is certain."""
    low, high = _bracket(gains, against)
    while True:
        count, weight, inside = _look(gains, low, high)
        if count and count - float(high) * weight >= against:
            high = np.float32(np.inf)
            continue
        values, alike = np.unique(inside, return_counts=True)
        values, alike = values[::-1], alike[::-1]
        k = count + np.concatenate([[0], np.cumsum(alike)])
        total = weight + np.concatenate([[0.0], np.cumsum(alike / values.astype(np.float64))])
        if low > _LEAST and k[-1] - float(low) * total[-1] < against:
            low = _LEAST
            continue
        worth = np.divide(k - against, total, out=np.full(len(k), -np.inf), where=total > 0)
        best = int(worth.argmax())
        if worth[best] <= 0.0:
            return np.float32(0.0), 0.0
        return (values[best - 1] if best else high), float(total[best])


def _bracket(gains: np.ndarray, against: float) -> tuple[np.float32, np.float32]:
    """An interval [low, high) of gains that should contain the root of F, from a sample of the gains."""
    sample = np.sort(gains[:: max(1, len(gains) // _SAMPLE)])[::-1]
    sample = sample[np.isfinite(sample) & (sample > _LEAST)].astype(np.float64)
    drawn = max(1, min(len(gains), _SAMPLE))
    each = len(gains) / drawn
    f = each * (np.arange(1, len(sample) + 1) - sample * np.cumsum(1.0 / sample))
    root = sample[min(int(np.count_nonzero(f < against)), len(sample) - 1)] if len(sample) else 1.0
    terms = np.maximum(0.0, 1.0 - root / sample)
    off = _FAR * len(gains) * (float(terms.std()) + 1e-3 if len(sample) else 1.0) / np.sqrt(drawn)
    above, below = np.flatnonzero(f <= against - off), np.flatnonzero(f >= against + off)
    high = sample[above[-1]] if len(above) else np.inf
    low = sample[below[0]] if len(below) else _LEAST
    return np.float32(low), np.float32(high)


def _look(gains: np.ndarray, low: np.float32, high: np.float32) -> tuple[int, float, np.ndarray]:
    """The number of gains that are at least `high`, the sum of 1 / g over them, and the gains in [low, high)."""
    count, weight, inside = 0, 0.0, []
    for _, some in _chunks(gains):
        if len(some) and not (some.min() >= 0 and some.max() < np.inf):
            raise ValueError("gains must be finite and not negative: 1 - margin, 1 - confidence and entropy are")
        above = some >= high
        more = int(np.count_nonzero(above))
        # Smaller gains count as `high` and are subtracted in each chunk: a difference of large sums would lose digits.
        inverse = np.divide(1.0, np.maximum(some, high), dtype=np.float64)
        count, weight = count + more, weight + float(inverse.sum()) - (len(some) - more) / float(high)
        inside.append(some[(some >= low) & ~above])
    return count, weight, np.concatenate(inside) if inside else gains[:0]


def _chunks(gains: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for begin in range(0, len(gains), _CHUNK):
        yield begin, gains[begin : begin + _CHUNK]

"""RAD's probabilities from a histogram of gains: `kdray.select.rad.game.inclusion` of a pool that is not listed.

Every gain counts as the value g' of its bin, which differs from it by less than d = 2^-10 of g'
(`kdray.search.bins`), and candidates of a bin have equal probabilities q. What q gains from b draws against the worst
adversary is then at most d (sum q g' + sum q* g') below the optimum, that of q*, the probabilities from the gains
themselves. For whatever the adversary does, the value of q with g differs from that with g' by at most d sum q g'; that
of q* likewise; and with g', q is the optimum. No sum exceeds b times the largest gain.
"""

import numpy as np

from kdray.search.bins import bin_values
from kdray.select.rad.game import ZERO, penalty, shares


class Histogram:
    """Gains in bins, in descending order; see `kdray.select.rad.game.Ordered`.

    Args:
        counts: int64 [BINS], gains in each bin, in ascending order of the bins.
    """

    def __init__(self, counts: np.ndarray) -> None:
        full = np.flatnonzero(counts)[::-1]
        counts, self._values = counts[full], bin_values()[full]
        self._ends = np.cumsum(counts)
        inverse = np.divide(counts, self._values, out=np.zeros(len(counts)), where=self._values > 0)
        self._inverses = np.cumsum(inverse)
        self.n = int(counts.sum())

    def gain(self, j: int) -> float:
        """See `Ordered`."""
        found: float = self._values[np.searchsorted(self._ends, j, side="right")]
        return found

    def inverse(self, j: int) -> float:
        """See `Ordered`."""
        whole = int(np.searchsorted(self._ends, j, side="right"))  # bins of which all gains are included
        total = self._inverses[whole - 1] if whole else np.float64(0.0)
        rest = j - (int(self._ends[whole - 1]) if whole else 0)
        return total + rest / self._values[whole] if rest and self._values[whole] > 0 else total

    def above(self, gain: float) -> int:
        """See `Ordered`."""
        return self._before(np.searchsorted(-self._values, -gain, side="left"))

    def at_least(self, gain: float) -> int:
        """See `Ordered`."""
        return self._before(np.searchsorted(-self._values, -gain, side="right"))

    def _before(self, bins: np.intp) -> int:
        return int(self._ends[bins - 1]) if bins else 0


def inclusion_of_bins(counts: np.ndarray, draws: int, mistakes: float, w: float | None = None) -> np.ndarray:
    """The probability of each candidate of a bin to be among `draws` distinct candidates.

    Args:
        counts: int64 [BINS], candidates in each bin.
        draws, mistakes, w: see `kdray.select.rad.game.inclusion`.

    Returns:
        float64 [BINS], also for empty bins; over all candidates they sum to `draws`.

    Raises:
        ValueError: an argument is out of its range.
    """
    gains = Histogram(counts)
    w = penalty(gains.n, mistakes, w, draws)
    values = bin_values()
    if draws == 0:
        return np.zeros(len(values))
    t, row, beyond = shares(gains, draws, mistakes, w)
    last = int(np.searchsorted(values, gains.gain(row)))  # the bin that gets the remainder
    probs = np.where(np.arange(len(values)) > last, np.minimum(1.0, t / np.maximum(values, ZERO)), beyond)
    probs[last] = 0.0
    probs[last] = (draws - float(probs @ counts)) / int(counts[last])
    return probs.clip(0.0, 1.0)


def most_draws_of_bins(counts: np.ndarray, mistakes: float, w: float | None) -> int:
    """`kdray.select.rad.draw.most_draws` of the candidates in `counts`, int64 [BINS]; at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    n = int(counts.sum())
    cost = penalty(n, mistakes, w)
    against = (1.0 + cost) * mistakes
    full = np.flatnonzero(counts)[::-1]
    if not len(full):
        return 1
    values = bin_values()[full]
    inverse = np.divide(counts[full], values, out=np.full(len(full), np.inf), where=values > 0)
    total = np.cumsum(inverse)
    worth = np.where(values > 0, (np.cumsum(counts[full]) - against) / total, -np.inf)
    best = int(worth.argmax())
    if worth[best] < -cost * values[-1]:  # a loss is certain: the smallest gains have all probability
        return int(counts[full[-1]])
    return max(1, int(total[best] * values[best] + 1e-9))

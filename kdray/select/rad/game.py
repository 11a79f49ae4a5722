"""Robust Active Distillation (RAD; Baykal et al., ICLR 2023): which candidates to query if the teacher errs on some.

A sampler picks a distribution p over n candidates. An adversary then picks the m candidates on which the teacher errs.
A correct answer gains g_i, a wrong one costs l_i (eq. 3). The distribution that is optimal against the worst adversary
has a closed form (Theorem 1). With l_i = w g_i (eq. 4), it is that of Corollary 1: each of the k* largest gains has a
probability proportional to 1 / g_i.

`distribution` is for one draw. `inclusion` solves the same game for b draws without repetition, in which no probability
may exceed 1. The result is b p, as in section 3.3, if no b p_i exceeds 1. Otherwise it is the optimum under this
constraint.
"""

from bisect import bisect_left
from collections.abc import Callable
from math import ceil
from typing import Protocol

import numpy as np

ZERO = 1e-30
"""A smaller gain counts as 0, because its inverse would dominate any sum."""


def distribution(
    gains: np.ndarray, mistakes: float, w: float | None = None, losses: np.ndarray | None = None
) -> np.ndarray:
    """The sampler's optimal distribution over candidates, for one draw: p* of Corollary 1, or of Theorem 1.

    Candidates of equal gain and loss have equal probabilities. If the teacher errs on so many candidates that a loss is
    certain, the candidates of smallest loss have all probability.

    Args:
        gains: float [n], none negative.
        mistakes: m, the number of candidates on which the teacher errs; any number in [0, n].
        w: a wrong answer costs w g (Corollary 1), in [0, 1]; None means 1 - m / n.
        losses: float [n], none negative, the costs of wrong answers, instead of w g (Theorem 1).

    Returns:
        float64 [n], summing to 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    gains, losses = _checked(gains, mistakes, w, losses)
    order, weights, values = _play(gains, losses, mistakes)
    p = np.zeros(len(gains))
    if len(values) == 0 or values.max() < -losses.min():
        least = losses == losses.min()
        p[least] = 1.0 / np.count_nonzero(least)
        return p
    last = gains[order[values.argmax()]]
    # More candidates of that gain leave the value unchanged. All are included, so the order of the input has no effect.
    count = int(np.searchsorted(-gains[order], -last, side="right"))
    p[order[:count]] = weights[:count] / weights[:count].sum()
    return p


def optimal_value(
    gains: np.ndarray, mistakes: float, w: float | None = None, losses: np.ndarray | None = None
) -> float:
    """The expected gain of one draw from `distribution` against the worst adversary: OPT(k*) of Theorem 1.

    Arguments and errors are those of `distribution`.
    """
    gains, losses = _checked(gains, mistakes, w, losses)
    _, _, values = _play(gains, losses, mistakes)
    return float(max(-losses.min(), values.max(initial=-np.inf)))


def inclusion(gains: np.ndarray, draws: int, mistakes: float, w: float | None = None) -> np.ndarray:
    """The probability of each candidate to be among `draws` distinct candidates.

    The result q is the optimal solution of eq. 4 over all q in [0, 1]^n that sum to b = `draws`, instead of over
    distributions. q = b p* if no b p*_i exceeds 1. Otherwise the clipped candidates are certain. Their excess goes to
    the other candidates in the support and to the next largest gains, as far as that pays against the adversary.

    Method: the adversary takes the m largest q_i (g_i + l_i). So in a solution, all uncertain candidates of the support
    have the same product, and q_i = min(1, t / g_i). Adding another candidate, of gain g, pays while the sum of
    1 - g / g_i over the uncertain candidates is below (1 + w) m.

    Args:
        gains: float [n], none negative.
        draws: b, in [0, n].
        mistakes, w: see `distribution`.

    Returns:
        float64 [n], summing to b.

    Raises:
        ValueError: an argument is out of its range.
    """
    n, w = len(gains), penalty(len(gains), mistakes, w, draws)
    gains, _ = _checked(gains, mistakes, w, None)
    q = np.zeros(n)
    if draws == 0:
        return q
    order = np.argsort(-gains, kind="stable")
    g = np.where(gains < ZERO, 0.0, gains)[order]
    t, row, beyond = shares(Descending(g), draws, mistakes, w)
    alike = slice(*(int(np.searchsorted(-g, -g[row], side=side)) for side in ("left", "right")))
    some = np.where(np.arange(n) < alike.start, np.minimum(1.0, t / np.maximum(g, ZERO)), beyond)
    some[alike] = 0.0
    some[alike] = (draws - some.sum()) / (alike.stop - alike.start)
    q[order] = some.clip(0.0, 1.0)
    return q


class Ordered(Protocol):
    """n gains in descending order."""

    n: int

    def gain(self, j: int) -> float:
        """Gain j, of 0 to n - 1."""

    def inverse(self, j: int) -> float:
        """The sum of 1 / g over the j largest gains, without those that are 0."""

    def above(self, gain: float) -> int:
        """Number of gains above `gain`."""

    def at_least(self, gain: float) -> int:
        """Number of gains of `gain` or more."""


class Descending:
    """Gains that are all listed, float64 [n] in descending order; see `Ordered`."""

    def __init__(self, g: np.ndarray) -> None:
        self.n, self._g = len(g), g
        self._inverse = np.concatenate([[0.0], np.cumsum(np.divide(1.0, g, out=np.zeros(len(g)), where=g > 0))])

    def gain(self, j: int) -> float:
        """See `Ordered`."""
        found: float = self._g[j]
        return found

    def inverse(self, j: int) -> float:
        """See `Ordered`."""
        found: float = self._inverse[j]
        return found

    def above(self, gain: float) -> int:
        """See `Ordered`."""
        return int(np.searchsorted(-self._g, -gain, side="left"))

    def at_least(self, gain: float) -> int:
        """See `Ordered`."""
        return int(np.searchsorted(-self._g, -gain, side="right"))


def shares(g: Ordered, draws: int, mistakes: float, w: float) -> tuple[float, int, float]:
    """t, the candidate that (with those of equal gain) gets the remainder, and the probability of all later candidates.

    Args:
        g: gains in descending order.
        draws: at least 1.
        mistakes, w: see `inclusion`.

    Returns:
        t; the position of the candidate in `g`; the probability of later candidates, 0 or 1.
    """
    n, against = g.n, (1.0 + w) * mistakes

    def level(k: int) -> tuple[float, int]:
        """t at which the first k candidates use all draws, and how many of them stay below 1."""
        below = _first(k, lambda j: g.gain(j) * g.inverse(j) + (k - j) <= draws)
        if below == 0:
            return np.inf, 0
        inverse = g.inverse(below)  # 0 where all gains are 0: they share the draws alike, whatever t is
        return (max(0.0, (draws - k + below) / inverse) if inverse > 0 else 0.0), below

    def settled(k: int) -> bool:
        """Whether moving probability from the first k candidates to the next one does not pay."""
        _, below = level(k)
        return bool(below - g.gain(k) * g.inverse(below) >= against)

    k = draws + _first(n - draws, lambda more: settled(draws + more))
    row = k - 1
    last = g.gain(row)
    begin, end = g.above(last), g.at_least(last)
    enough = _first(begin + 1, lambda j: j - last * g.inverse(j) >= against)
    t, below = level(end)
    if enough <= begin and (stop := g.gain(enough - 1) if enough else np.inf) >= t:
        # With this many uncertain candidates, taking more probability from the earlier ones does not pay.
        return min(stop, level(begin)[0] if begin >= draws else np.inf), row, 0.0
    if end < n or below == 0:
        return t, row, 0.0

    # All candidates are included. It may still pay to move probability from the largest gains to the smallest until the
    # smallest are certain.
    def spared(r: int) -> bool:
        """Whether this stops paying before candidate r is certain."""
        lowest = (draws - (n - r)) / g.inverse(r) if r else 0.0
        above = max(0, g.above(lowest) - r)
        return bool(r + w * g.gain(r) * g.inverse(r) + (1.0 + w) * above >= against)

    r = below - 1 - _first(below - (n - draws), lambda less: spared(below - 1 - less))
    if r < n - draws:
        return 0.0, n - draws, 1.0
    missing = max(0, ceil((against - r - w * g.gain(r) * g.inverse(r)) / (1.0 + w) - 1e-12))
    t = (draws - (n - 1 - r)) / g.inverse(r + 1)
    return (min(t, g.gain(r + missing - 1)) if missing else t), r, 1.0


def penalty(n: int, mistakes: float, w: float | None, draws: int = 0) -> float:
    """w, or 1 - m / n if it is None.

    Raises:
        ValueError: w, m or the number of draws is out of range for n candidates.
    """
    if not 0 <= mistakes <= n:
        raise ValueError(f"mistakes must lie in [0, {n:,}], the number of candidates, got {mistakes!r}")
    if not 0 <= draws <= n:
        raise ValueError(f"draws must lie in [0, {n:,}], the number of candidates, got {draws!r}")
    if w is None:
        return 1.0 - mistakes / n if n else 1.0
    if not 0 <= w <= 1:
        raise ValueError(f"w must lie in [0, 1], got {w!r}")
    return w


def _first(n: int, true: Callable[[int], bool]) -> int:
    """The first number of 0 to n - 1 for which `true` holds; n if there is none. It must hold for all later numbers."""
    return bisect_left(range(n), True, key=true)


def _checked(
    gains: np.ndarray, mistakes: float, w: float | None, losses: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Gains and losses as float64 [n]. Raises ValueError if an argument is out of its range."""
    gains = np.asarray(gains, dtype=np.float64)
    if gains.ndim != 1 or len(gains) == 0:
        raise ValueError(f"gains must be one number a candidate, at least one, got shape {gains.shape}")
    if not (np.isfinite(gains).all() and (gains >= 0).all()):
        raise ValueError("gains must be finite and not negative: 1 - margin, 1 - confidence and entropy are")
    if losses is not None:
        if w is not None:
            raise ValueError("give w or losses, not both: w stands for losses of w times the gains")
        losses = np.asarray(losses, dtype=np.float64)
        if losses.shape != gains.shape or not (np.isfinite(losses).all() and (losses >= 0).all()):
            raise ValueError("losses must be finite, not negative, and as many as gains")
        penalty(len(gains), mistakes, None)
        return gains, losses
    return gains, penalty(len(gains), mistakes, w) * gains


def _play(gains: np.ndarray, losses: np.ndarray, mistakes: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Theorem 1: candidates in order of descending gain, 1 / (g + l) of each, and (G_k - m) / H_k for k = 1, 2, ...

    Candidates with a gain and a loss of 0 are left out.
    """
    order = np.argsort(-gains, kind="stable")
    order = order[gains[order] + losses[order] > ZERO]
    weights = 1.0 / (gains[order] + losses[order])
    return order, weights, (np.cumsum(gains[order] * weights) - mistakes) / np.cumsum(weights)

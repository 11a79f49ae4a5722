"""How many of the truly lowest a search by guesses has found: an estimate from a sample of what it left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Of the interval."""


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Groups that were left out, and a sample of them, drawn without replacement.

    Attributes:
        size: how many there are.
        scores: float32 [n, c]: exact scores of the n in the sample: of each its best candidate, or all of them.
    """

    size: int
    scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The share of the k truly lowest that was found.

    Attributes:
        value: the estimate.
        low, high: 95 % interval, conservative (Clopper and Pearson's for each stratum, added up).
        sampled: groups that were scored for it.
        missed: the share that each stratum holds of what was missed, in the order given.
    """

    value: float
    low: float
    high: float
    sampled: int
    missed: tuple[float, ...]


def estimate(chosen: np.ndarray, strata: Sequence[Stratum]) -> Recall:
    """What the k lowest would have been had everything been scored, as far as a sample tells.

    A score of the sample stands for as many as its stratum has groups for each that was drawn. Merged with the chosen
    ones, in order, until k are together, what is not from the chosen was missed.

    Args:
        chosen: scores of the k chosen, float32 [k], k >= 1.
        strata: what was left out; each with a sample, unless it is empty.
    """
    k, given = len(chosen), strata
    strata = [stratum for stratum in given if stratum.size]
    scores = np.concatenate([chosen, *(stratum.scores.ravel() for stratum in strata)])
    each = [np.full(s.scores.size, s.size / len(s.scores)) for s in strata]
    weight = np.concatenate([np.ones(k), *each])
    origin = np.repeat(np.arange(-1, len(strata)), [k, *(stratum.scores.size for stratum in strata)])
    left_out = origin >= 0
    order = np.lexsort((left_out, scores))  # what was chosen first: a tie is no miss
    before = np.cumsum(weight[order]) - weight[order]
    counted = np.clip(k - before, 0.0, weight[order])
    by_stratum = [float(counted[origin[order] == number].sum()) for number in range(len(strata))]
    missed = sum(by_stratum)
    last = scores[order][np.searchsorted(before, k) - 1]
    low, high = _interval(strata, float(last), missed)
    return Recall(
        value=1.0 - missed / k,
        low=max(0.0, 1.0 - high / k),
        high=min(1.0, 1.0 - low / k),
        sampled=sum(len(stratum.scores) for stratum in strata),
        missed=tuple(by_stratum.pop(0) / k if stratum.size else 0.0 for stratum in given),
    )


def share_out(count: int, sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """How many to draw from each stratum: these shares of `count`, the rest from the last; at least one of each that is
    not empty, and what one does not hold from the others."""
    counts = [min(size, max(1, int(share * count))) for size, share in zip(sizes, shares, strict=False)]
    counts.append(max(min(sizes[-1], 1), min(sizes[-1], count - sum(counts))))
    for number, size in enumerate(sizes):
        counts[number] += max(0, min(size - counts[number], count - sum(counts)))
    return counts


def _interval(strata: Sequence[Stratum], last: float, missed: float) -> tuple[float, float]:
    """Fewest and most that may have been missed: groups with a score below `last`."""
    from scipy.special import betaincinv

    low = high = 0.0
    tail = (1.0 - LEVEL) / 2 / max(1, sum(len(s.scores) < s.size for s in strata))
    for stratum in strata:
        below = (stratum.scores < last).sum(axis=1)
        hits, n, size = int((below > 0).sum()), len(stratum.scores), stratum.size
        candidates = float(below.sum()) / hits if hits else 1.0
        if n == size:
            low, high = low + hits * candidates, high + hits * candidates
            continue
        low += size * candidates * (float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0)
        high += size * candidates * (float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0)
    return min(low, missed), max(high, missed)

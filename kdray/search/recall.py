"""The recall of a search by guesses, estimated from a sample of the groups that it left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdray.utils.intervals import LEVEL, clopper_pearson


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """A set of groups that were left out, and a sample of it, drawn without replacement.

    Attributes:
        size: number of groups in the set.
        scores: float32 [n, c], exact scores of the n sampled groups: of the best candidate, or of all candidates.
    """

    size: int
    scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Recall:
    """The share of the k lowest candidates that a search found.

    Attributes:
        value: the estimate.
        low, high: conservative 95 % interval: the sum of the strata's Clopper-Pearson intervals.
        sampled: number of groups scored for the estimate.
        missed: for each stratum, in the order given, the share of the k lowest candidates that it holds.
    """

    value: float
    low: float
    high: float
    sampled: int
    missed: tuple[float, ...]


def estimate_recall(chosen: np.ndarray, strata: Sequence[Stratum]) -> Recall:
    """Estimate the recall of the chosen candidates from samples of the groups that were left out.

    A sampled score has the weight size / n of its stratum, a chosen score has the weight 1. Scores are added in
    ascending order until their weights sum to k. The part of the weight from sampled scores was missed.

    Args:
        chosen: scores of the k chosen candidates, float32 [k], k >= 1.
        strata: the groups that were left out. Each stratum that is not empty has a sample.
    """
    k, given = len(chosen), strata
    strata = [stratum for stratum in given if stratum.size]
    scores = np.concatenate([chosen, *(stratum.scores.ravel() for stratum in strata)])
    each = [np.full(s.scores.size, s.size / len(s.scores)) for s in strata]
    weight = np.concatenate([np.ones(k), *each])
    origin = np.repeat(np.arange(-1, len(strata)), [k, *(stratum.scores.size for stratum in strata)])
    left_out = origin >= 0
    order = np.lexsort((left_out, scores))  # chosen scores come first: a tie is not missed
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
    """Divide a sample of `count` groups among strata.

    The last stratum gets what `shares` leaves. A stratum that is not empty gets at least one. If a stratum has too few
    groups, the others get more.
    """
    counts = [min(size, max(1, int(share * count))) for size, share in zip(sizes, shares, strict=False)]
    counts.append(max(min(sizes[-1], 1), min(sizes[-1], count - sum(counts))))
    for number, size in enumerate(sizes):
        counts[number] += max(0, min(size - counts[number], count - sum(counts)))
    return counts


def _interval(strata: Sequence[Stratum], last: float, missed: float) -> tuple[float, float]:
    """Lower and upper bound of the number of missed candidates, those with a score below `last`."""
    low = high = 0.0
    tail = (1.0 - LEVEL) / 2 / max(1, sum(len(s.scores) < s.size for s in strata))
    for stratum in strata:
        below = (stratum.scores < last).sum(axis=1)
        hits, n, size = int((below > 0).sum()), len(stratum.scores), stratum.size
        candidates = float(below.sum()) / hits if hits else 1.0
        if n == size:
            low, high = low + hits * candidates, high + hits * candidates
            continue
        least, most = clopper_pearson(hits, n, tail)
        low, high = low + size * candidates * least, high + size * candidates * most
    return min(low, missed), max(high, missed)

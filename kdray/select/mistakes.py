"""On how many candidates the teacher errs: RAD's m, as the user says it or as a few queries tell."""

from dataclasses import asdict, dataclass
from math import log, sqrt
from typing import Any

import numpy as np

USUAL = 0.05
"""A share that needs no query: some five in a hundred images are too hard or mislabelled (RAD, section D.4)."""
_DELTA = 0.05


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """m, as a number or as a share of the n candidates that are left.

    Attributes:
        count: m; None where it is a share.
        share: m / n.
    """

    count: int | None = None
    share: float = USUAL

    def of(self, n: int) -> float:
        """m of `n` candidates."""
        return self.share * n if self.count is None else float(self.count)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a uniform sample tells of the share of candidates the teacher errs on.

    Attributes:
        how: "validation": the teacher's error on labelled images. "ends": see `strangers`.
        answered: images of the sample with an answer that says something.
        mistakes: answers that are wrong.
        share: their share; the usual 5 % where nothing was answered.
        low, high: 95 % interval of m / n by Lemma 5.
    """

    how: str
    answered: int
    mistakes: int
    share: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return asdict(self)


def estimate(wrong: np.ndarray, candidates: int, how: str) -> Estimate:
    """The share of `candidates` the teacher errs on, from a sample of answers, bool [k]: whether each is wrong."""
    if len(wrong) == 0:
        return Estimate(how=how, answered=0, mistakes=0, share=USUAL, low=0.0, high=1.0)
    share = float(wrong.mean())
    off = deviation(share, candidates, len(wrong))
    return Estimate(
        how=how,
        answered=len(wrong),
        mistakes=int(wrong.sum()),
        share=share,
        low=max(0.0, share - off),
        high=min(1.0, share + off),
    )


def deviation(share: float, candidates: int, sample: int, delta: float = _DELTA) -> float:
    """How far m / n may be from a sample's share, with probability 1 - delta (RAD, Lemma 5).

    log(4 / delta) (1 / n + 1 / k) + sqrt(2 p (1 - p) log(4 / delta)) (1 / sqrt(n) + 1 / sqrt(k)), with the share in the
    sample in place of the unknown p.

    Args:
        share: of mistakes, in [0, 1].
        candidates: n, at least 1.
        sample: k, at least 1.
    """
    surely = log(4.0 / delta)
    near = sqrt(2.0 * share * (1.0 - share) * surely) * (1.0 / sqrt(candidates) + 1.0 / sqrt(sample))
    return surely * (1.0 / candidates + 1.0 / sample) + near


def strangers(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which answers to mixes name a class that neither of the two images is of: what counts as a mistake where nobody
    knows the truth.

    A mix has no true class. But whatever it shows comes from its two images, and what those are the teacher itself has
    said: a third class is an artefact of mixing, which the student had better not learn.

    Args:
        labels: int64 [k], the teacher's class for each mix.
        first, second: int64 [k], its classes for the two images; -1 where it gave none: these say nothing.

    Returns:
        bool, one for each that says something.
    """
    known = (first >= 0) & (second >= 0)
    return ((labels != first) & (labels != second))[known]

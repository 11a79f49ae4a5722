"""RAD's m, the number of candidates on which the teacher errs: set by the user, or estimated from a few queries."""

from dataclasses import asdict, dataclass
from math import log, sqrt
from typing import Any

import numpy as np

USUAL = 0.05
"""The share used without an estimate: about 5 % of images are too hard or mislabelled (RAD, section D.4)."""
_DELTA = 0.05


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """m, as a count or as a share of the n candidates that are left.

    Attributes:
        count: m; None if m is given as a share.
        share: m / n; used if `count` is None.
    """

    count: int | None = None
    share: float = USUAL

    def of(self, n: int) -> float:
        """m for `n` candidates."""
        return self.share * n if self.count is None else float(self.count)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate of the share of candidates on which the teacher errs, from a uniform sample.

    Attributes:
        how: "validation": the teacher's error on labelled images. "sources": see `foreign_classes`.
        answered: number of sampled images with a usable answer.
        mistakes: number of wrong answers.
        share: share of wrong answers; 5 % (`USUAL`) if no answer was usable.
        low, high: 95 % interval of m / n by Lemma 5.
    """

    how: str
    answered: int
    mistakes: int
    share: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """The estimate as a plain mapping."""
        return asdict(self)


def estimate_share(wrong: np.ndarray, candidates: int, how: str) -> Estimate:
    """Estimate the share of `candidates` on which the teacher errs, from a sample of answers.

    Args:
        wrong: bool [k], whether each answer is wrong.
    """
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
    """The largest difference between m / n and the share in a sample, with probability 1 - delta (RAD, Lemma 5).

    log(4 / delta) (1 / n + 1 / k) + sqrt(2 p (1 - p) log(4 / delta)) (1 / sqrt(n) + 1 / sqrt(k)). The share in the
    sample replaces the unknown p.

    Args:
        share: share of mistakes in the sample, in [0, 1].
        candidates: n, at least 1.
        sample: k, at least 1.
    """
    surely = log(4.0 / delta)
    near = sqrt(2.0 * share * (1.0 - share) * surely) * (1.0 / sqrt(candidates) + 1.0 / sqrt(sample))
    return surely * (1.0 / candidates + 1.0 / sample) + near


def foreign_classes(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which answers to mixes name a class of neither of the two images. Such an answer counts as a mistake.

    A mix has no true class. But its content comes from its two images, and the teacher has given their classes. A third
    class is an artefact of mixing that the student should not learn.

    Args:
        labels: int64 [k], the teacher's class for each mix.
        first, second: int64 [k], the teacher's classes for the two images; -1 if unknown. Mixes with an unknown class
            are left out.

    Returns:
        bool, one value for each mix that is not left out.
    """
    known = (first >= 0) & (second >= 0)
    foreign: np.ndarray = ((labels != first) & (labels != second))[known]
    return foreign

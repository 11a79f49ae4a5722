"""Scores of candidates, computed from the student's class probabilities.

An informative candidate has a low *score*, and a high *gain*. RAD uses gains.

`confidence`, `margin` and `entropy` take probabilities float [B, K] and return float [B] of the same dtype. An
informative candidate has a low confidence, a low margin or a high entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Score = Literal["confidence", "margin", "entropy"]
"""The names of the scores."""


def confidence(probs: Tensor) -> Tensor:
    """C1(x) = max_y P(y|x), in [1/K, 1] (Active Mixup, eq. 2)."""
    return probs.amax(dim=1)


def margin(probs: Tensor) -> Tensor:
    """Largest minus second largest probability, in [0, 1]. It is 1 if there is only one class."""
    if probs.shape[1] == 1:
        return torch.ones_like(probs[:, 0])
    top = probs.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy in nats, in [0, ln K]. A probability of zero adds nothing."""
    entropies: Tensor = torch.special.entr(probs).sum(dim=1)
    return entropies


INFORMATIVE: dict[Score, Callable[[Tensor], Tensor]] = {
    "confidence": confidence,
    "margin": margin,
    "entropy": lambda probs: -entropy(probs),
}
"""Each score as a function from probabilities float [B, K] to float [B]. A low score means informative."""


def to_gains(scores: np.ndarray, name: Score) -> np.ndarray:
    """Convert scores float32 [n] of the kind `name` to gains, in place. No gain is negative.

    A gain is 1 - margin (RAD, section 3.1), 1 - confidence, or the entropy (section D.6).
    """
    np.negative(scores, out=scores)
    if name != "entropy":
        scores += 1.0
    np.maximum(scores, 0.0, out=scores)
    return scores

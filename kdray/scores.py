"""How informative the student finds a candidate, from its class probabilities.

A *score* is low where a candidate is informative, a *gain* high: what RAD consumes.

All functions take probabilities float [B, K] and return float [B] of the same dtype. For `confidence` and
`margin` a *low* value means informative, for `entropy` a high one.
"""

import numpy as np
import torch
from torch import Tensor


def confidence(probs: Tensor) -> Tensor:
    """C1(x) = max_y P(y|x) (Active Mixup, eq. 2). In [1/K, 1]."""
    return probs.amax(dim=1)


def margin(probs: Tensor) -> Tensor:
    """Largest minus second largest probability. In [0, 1]; 1 where there is only one class."""
    if probs.shape[1] == 1:
        return torch.ones_like(probs[:, 0])
    top = probs.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy in nats. In [0, ln K]; a probability of zero adds nothing."""
    return torch.special.entr(probs).sum(dim=1)


INFORMATIVE = {"confidence": confidence, "margin": margin, "entropy": lambda probs: -entropy(probs)}
"""What may be searched for, by name, each so that low means informative."""


def to_gains(scores: np.ndarray, name: str) -> np.ndarray:
    """Gains of scores float32 [n] of the kind `name`, in their own memory; none is negative.

    1 - margin (RAD, section 3.1), 1 - confidence, or the entropy (section D.6).
    """
    np.negative(scores, out=scores)
    if name != "entropy":
        scores += 1.0
    return np.maximum(scores, 0.0, out=scores)

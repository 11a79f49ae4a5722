"""The losses that a generator is trained with: "IDEAL: Query-Efficient Data-Free Learning from Black-Box Models"
(Zhang, Chen and Lyu, ICLR 2023), section 3.3."""

import torch
from torch import Tensor
from torch.nn import functional as F


def information_loss(probs: Tensor) -> Tensor:
    """The information loss of a batch (IDEAL, eq. 4 and 5), with the paper's sign and scale.

    That is (1 / K) sum_k p_k log p_k of the mean p of the batch: minus its entropy in nats, divided by the number of
    classes. It lies between -log(K) / K, where the batch is even among the classes, and 0, where it is all of one.

    Args:
        probs: the student's probabilities, float [B, K], B at least 1.

    Returns:
        A scalar of the dtype of `probs`.

    Raises:
        ValueError: another shape.
    """
    if probs.ndim != 2 or 0 in probs.shape:
        raise ValueError(f"probs must be [B, K] with at least one row and one class, got {list(probs.shape)}")
    mean = probs.mean(dim=0)
    # Of a class that never occurs: 0 log 0 is 0, and the gradient stays finite.
    return (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).mean()


def generator_loss(logits: Tensor, labels: Tensor, weight: float | None = 5.0, cross_entropy: bool = True) -> Tensor:
    """The loss of a generator (IDEAL, eq. 3 and 6): cross-entropy, and `weight` times the information loss.

    Args:
        logits: the student's, for generated images: float [B, K].
        labels: the classes that the images should have: int64 [B].
        weight: λ; None leaves the information loss out (Table 4).
        cross_entropy: False leaves the cross-entropy out (Table 4).

    Returns:
        A scalar.

    Raises:
        ValueError: both are left out.
    """
    if weight is None and not cross_entropy:
        raise ValueError("a generator needs the cross-entropy, the information loss, or both")
    loss = F.cross_entropy(logits, labels) if cross_entropy else logits.new_zeros(())
    return loss if weight is None else loss + weight * information_loss(logits.softmax(dim=1))

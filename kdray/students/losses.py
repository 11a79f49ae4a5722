"""Distillation losses. Logits float [B, K], targets probabilities float [B, K]; softmax always in float32."""

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_k targets_k log softmax(logits)_k, averaged over the batch: a scalar (Active Mixup, section 3.3).

    With one-hot targets it equals the usual cross entropy.
    """
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()

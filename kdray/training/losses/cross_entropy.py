"""Cross entropy with soft labels."""

from typing import TYPE_CHECKING, Literal

from kdray.training.losses.base import Loss, losses
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def soft_cross_entropy(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """-sum_k targets_k log softmax(logits)_k, averaged over the batch (Active Mixup, section 3.3).

    With one-hot targets it equals the usual cross entropy.

    Args:
        logits: float [B, K]; the softmax is taken in float32.
        targets: probabilities, float [B, K].

    Returns:
        A scalar, in nats.
    """
    return -(targets * torch.nn.functional.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


@losses.register
class CrossEntropy(Loss):
    """Cross entropy with the answers as soft labels."""

    kind: Literal["cross-entropy"] = "cross-entropy"

    def __call__(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """See `soft_cross_entropy`."""
        return soft_cross_entropy(logits, targets)

"""Cross entropy with soft labels."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.training.losses.base import Loss, losses
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def soft_cross_entropy(logits: "Tensor", targets: "Tensor", smoothing: float = 0.0) -> "Tensor":
    """-sum_k targets_k log softmax(logits)_k, averaged over the batch (Active Mixup, section 3.3).

    With one-hot targets it equals the usual cross entropy, smoothing included (Szegedy et al., 2016, section 7).

    Args:
        logits: float [B, K]; the softmax is taken in float32.
        targets: probabilities, float [B, K].
        smoothing: s in [0, 1]; the targets become (1 - s) targets + s / K.

    Returns:
        A scalar, in nats.
    """
    if smoothing:
        targets = (1.0 - smoothing) * targets + smoothing / targets.shape[1]
    return -(targets * torch.nn.functional.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


@losses.register
class CrossEntropy(Loss):
    """Cross entropy with the answers as soft labels."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each answer that is spread evenly over all classes (label smoothing)."""

    def __call__(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """See `soft_cross_entropy`."""
        return soft_cross_entropy(logits, targets, self.smoothing)

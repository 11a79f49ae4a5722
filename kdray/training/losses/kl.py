"""Kullback-Leibler divergence, with a temperature."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.training.losses.base import Loss, losses
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def kd_divergence(logits: "Tensor", targets: "Tensor", temperature: float = 1.0) -> "Tensor":
    """T^2 KL(targets_T || softmax(logits / T)), averaged over the batch (Hinton et al., 2015, section 2).

    targets_T are the targets to the power 1 / T, scaled to sum to 1: the softmax of the teacher's logits over T. RAD's
    loss (Algorithm 1) has T = 1; its gradients are those of `soft_cross_entropy`.

    Args:
        logits: float [B, K]; the softmax is taken in float32.
        targets: probabilities, float [B, K].
        temperature: T, above 0.

    Returns:
        A scalar, in nats.
    """
    return temperature**2 * kd_rows(logits, targets, temperature).mean()


def kd_rows(logits: "Tensor", targets: "Tensor", temperature: float = 1.0) -> "Tensor":
    """KL(targets_T || softmax(logits / T)) of each row, float32 [B], without the factor T^2; see `kd_divergence`."""
    targets = targets.float()
    if temperature != 1.0:
        softened = targets.clamp_min(0).pow(1.0 / temperature)
        targets = softened / softened.sum(dim=1, keepdim=True)
    student = torch.nn.functional.log_softmax(logits.float() / temperature, dim=1)
    return (torch.xlogy(targets, targets) - targets * student).sum(dim=1)


@losses.register
class KL(Loss):
    """Kullback-Leibler divergence from the answers; at temperature 1 its gradients are those of cross entropy."""

    kind: Literal["kl"] = "kl"
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Answers and student are softened by it (Hinton et al., 2015); 1: RAD's loss."""

    def __call__(self, logits: "Tensor", targets: "Tensor") -> "Tensor":
        """See `kd_divergence`."""
        return kd_divergence(logits, targets, self.temperature)

"""Distillation losses. Logits float [B, K], targets probabilities float [B, K]; softmax always in float32."""

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_k targets_k log softmax(logits)_k, averaged over the batch: a scalar (Active Mixup, section 3.3).

    With one-hot targets it equals the usual cross entropy.
    """
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def kd_divergence(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(targets_T || softmax(logits / T)), averaged over the batch: a scalar (Hinton et al., 2015).

    targets_T are the targets to the power 1 / T, scaled to sum to 1: the softmax of the teacher's logits over T. RAD's
    loss (Algorithm 1) has T = 1, where its gradients are those of `soft_cross_entropy`.
    """
    targets = targets.float()
    if temperature != 1.0:
        softened = targets.clamp_min(0).pow(1.0 / temperature)
        targets = softened / softened.sum(dim=1, keepdim=True)
    student = F.log_softmax(logits.float() / temperature, dim=1)
    return temperature**2 * (torch.xlogy(targets, targets) - targets * student).sum(dim=1).mean()

"""Distillation losses, one a module. Their functions can be used alone."""

from kdray.training.losses.cross_entropy import soft_cross_entropy
from kdray.training.losses.kl import kd_divergence

__all__ = ["kd_divergence", "soft_cross_entropy"]

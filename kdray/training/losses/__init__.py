"""Distillation losses, one a module. Their functions can be used alone."""

from kdray.training.losses.cross_entropy import soft_cross_entropy
from kdray.training.losses.kl import kd_divergence
from kdray.training.losses.mixkd import mixkd_objective
from kdray.training.losses.rescaled import rescaled_divergence

__all__ = ["kd_divergence", "mixkd_objective", "rescaled_divergence", "soft_cross_entropy"]

"""Robust Active Distillation (RAD; Baykal et al., ICLR 2023)."""

from kdray.select.rad.game import distribution, inclusion, optimal_value

__all__ = ["distribution", "inclusion", "optimal_value"]

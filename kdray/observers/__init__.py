"""Observers, which receive the events of a run."""

from kdray.observers.base import Observer, Observers, RoundMetrics

__all__ = ["Observer", "Observers", "RoundMetrics"]

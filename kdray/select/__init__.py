"""Strategies, which choose the candidates to query, and the computations of RAD."""

from kdray.select.base import Selection, Strategy, Task, select

__all__ = ["Selection", "Strategy", "Task", "select"]

"""Whom to pay for: pure functions from a pool, a number and a search to candidate ids."""

from kdray.select.strategies import STRATEGIES, Selection, capacity, select

__all__ = ["STRATEGIES", "Selection", "capacity", "select"]

"""Whom to pay for: from a pool, a number and a student to candidate ids."""

from kdray.select.mistakes import Estimate, Mistakes
from kdray.select.strategies import STRATEGIES, Strategy, capacity, driver_bytes, expected, select
from kdray.select.task import Ask, Options, Selection, Task

__all__ = [
    "STRATEGIES",
    "Ask",
    "Estimate",
    "Mistakes",
    "Options",
    "Selection",
    "Strategy",
    "Task",
    "capacity",
    "driver_bytes",
    "expected",
    "select",
]

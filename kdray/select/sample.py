"""Candidates for choices that compare them with each other, and so cannot look at millions."""

import numpy as np

from kdray.pools.order import sample_without
from kdray.search import BestRequest, Scored
from kdray.select.task import Task

_MOST = 50_000


def sampled(free: int, k: int) -> int:
    """How many groups of `free` are looked at to choose k: all up to 50,000, or ten for each that is chosen."""
    return max(k, min(free, max(_MOST, 10 * k)))


def drawn_groups(task: Task, count: int) -> np.ndarray:
    """`count` of the groups that are left, drawn at random: int64, ascending.

    Raises:
        PoolExhausted: fewer are left.
    """
    return np.sort(sample_without(task.pool.num_groups, count, task.taken_groups, task.generator))


def best_of(task: Task, groups: np.ndarray) -> Scored:
    """The candidate of smallest margin of each of `groups`, in their order."""
    return task.ask(BestRequest(groups=groups, score="margin"))

"""Candidates for a choice that compares them with each other, and so cannot look at millions."""

import numpy as np

from kdray.pools.order import sample_without
from kdray.search import BestRequest
from kdray.select.task import Task

_MOST = 50_000


def sampled(free: int, k: int) -> int:
    """How many groups of `free` are looked at to choose k: all up to 50,000, or ten for each that is chosen."""
    return max(k, min(free, max(_MOST, 10 * k)))


def drawn_candidates(task: Task) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The best candidate, by the margin, of each of some groups that are left: all of them, or a sample.

    Returns:
        (ids int64 [n], ascending; their margins float32 [n], or None where a group is one candidate, as nobody is asked
        then; forward passes).

    Raises:
        PoolExhausted: fewer than k groups are left.
    """
    taken = task.taken_groups
    count = sampled(task.pool.num_groups - len(taken), task.k)
    groups = np.sort(sample_without(task.pool.num_groups, count, taken, task.generator))
    if task.pool.group_size == 1:
        return groups, None, 0
    best = task.ask(BestRequest(groups=groups, score="margin"))
    return best.ids, best.scores, best.evaluated

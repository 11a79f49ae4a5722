"""Random samples of groups, for strategies that compare candidates with each other and cannot use millions of them."""

import numpy as np

from kdray.pools.permutation import sample_without
from kdray.search import BestRequest, Scored
from kdray.select.base import Task

_MOST = 50_000


def sampled(free: int, k: int) -> int:
    """Number of groups, out of `free`, to sample for a choice of k: 50,000, or 10 k if that is more; at least k."""
    return max(k, min(free, max(_MOST, 10 * k)))


def drawn_groups(task: Task, count: int) -> np.ndarray:
    """Draw `count` of the groups that are left at random: int64, ascending.

    Raises:
        PoolExhausted: fewer than `count` groups are left.
    """
    return np.sort(sample_without(task.pool.num_groups, count, task.taken_groups, task.generator))


def best_of(task: Task, groups: np.ndarray) -> Scored:
    """The candidate of smallest margin of each of `groups`, in the order of `groups`."""
    return task.ask(BestRequest(groups=groups, score="margin"))

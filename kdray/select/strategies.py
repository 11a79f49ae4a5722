"""The three choices Active Mixup compares (Figure 4): its own, vanilla active learning, and random pairs.

Each takes candidate ids that have left the pool and gives k others. Index spaces: `ids` are candidate ids, `groups`
are pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdray.errors import PoolExhausted
from kdray.search import Scored, SearchRequest

Search = Callable[[SearchRequest], Scored]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to pay for.

    Attributes:
        ids: int64 [k], distinct candidate ids, none of them taken; most informative first where there are scores.
        scores: float32 [k], or None where the choice does not look at the student.
        evaluated: forward passes of the student, in candidates.
    """

    ids: np.ndarray
    scores: np.ndarray | None = None
    evaluated: int = 0


def active_mixup(pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """The k pairs of lowest C2, each at its least confident λ (Active Mixup, eq. 3). Chosen pairs leave the pool."""
    return _searched(search(SearchRequest(k=k, per="group", taken=np.unique(taken // pool.group_size))))


def vanilla(pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """The k candidates of lowest C1 (eq. 2), however many of one pair. Chosen candidates leave the pool."""
    return _searched(search(SearchRequest(k=k, per="candidate", taken=np.unique(taken))))


def random_pairs(pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """k pairs drawn uniformly, each at the λ of the grid nearest 0.5 (section 4.2.2). Chosen pairs leave the pool."""
    groups = sample_without(pool.num_groups, k, np.unique(taken // pool.group_size), generator)
    return Selection(ids=groups * pool.group_size + pool.middle())


STRATEGIES: dict[str, Callable[..., Selection]] = {
    "active-mixup": active_mixup,
    "vanilla": vanilla,
    "random": random_pairs,
}


def capacity(strategy: str, pool) -> int:
    """How many candidates `strategy` can choose from a fresh pool, over all rounds."""
    return len(pool) if strategy == "vanilla" else pool.num_groups


def select(strategy: str, pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """Choose `k` candidates of `pool` with the named strategy.

    Args:
        taken: int64, candidate ids chosen in earlier rounds.
        generator: for choices that draw.
        search: finds the lowest scores under the current student; called only by choices that look at it.

    Raises:
        PoolExhausted: fewer than `k` are left.
    """
    chosen = STRATEGIES[strategy](pool, k, taken, generator, search)
    if len(chosen.ids) < k:
        raise PoolExhausted(
            f"{k:,} candidates wanted, {len(chosen.ids):,} are left for {strategy}; lower budget.queries"
        )
    return chosen


def sample_without(n: int, k: int, taken: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """k distinct numbers of [0, n), none of `taken` (sorted, distinct), uniformly, without listing [0, n).

    Draws ranks among the free numbers, then shifts each past the taken numbers at or before it.

    Raises:
        PoolExhausted: fewer than `k` are free.
    """
    free = n - len(taken)
    if k > free:
        raise PoolExhausted(
            f"{k:,} pairs wanted, {free:,} of {n:,} are left; lower budget.queries or raise images.count"
        )
    ranks = generator.choice(free, size=k, replace=False, shuffle=True).astype(np.int64) if k else np.empty(0, np.int64)
    # The free number of rank r is r + t, where t counts taken numbers below it: taken[t] - t is the rank at which
    # the t-th taken number is passed.
    return ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")


def _searched(found: Scored) -> Selection:
    return Selection(ids=found.ids, scores=found.scores, evaluated=found.evaluated)
